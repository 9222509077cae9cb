"""The documents' hub sources as data: which table, and which of its columns are query, positive and negatives.

A source has one or more parts, each a table of the hub with column rules (``neobert.contrastive.columns``).
Retrieval sets in MTEB's layout hold ids, which ``Join`` replaces by texts of another table. Names, tables and the
choice of columns are those of NeoBERT's contrastive data (arXiv:2502.19587); its threshold on scored pairs, which was
computed and then dropped there, is applied here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A data set of the hub: name, configuration, split."""

    name: str
    config: str | None = None
    split: str = "train"


@dataclass(frozen=True)
class Join:
    """Replace the ids in ``column`` by the ``text`` of the row of ``table`` whose ``key`` they are."""

    column: str
    table: Table
    key: str = "_id"
    text: str = "text"


@dataclass(frozen=True)
class Part:
    """One table and its column rules; ``name`` tells the parts of a source apart."""

    table: Table
    query: str
    corpus: str
    negative: str | list[str] | None = None
    score: str | None = None
    min_score: float | None = None
    kind: str | None = None
    label: str | None = None
    name: str = ""
    joins: tuple[Join, ...] = ()


def _numbered(count: int) -> list[str]:
    return [f"negative_{i + 1}" for i in range(count)]


def _retrieval(name: str) -> Part:
    """A set in MTEB's retrieval layout: judgements, queries and documents in three tables."""
    joins = (
        Join("query-id", Table(name, "queries", "queries")),
        Join("corpus-id", Table(name, "corpus", "corpus")),
    )
    return Part(Table(name, "default"), "query-id", "corpus-id", score="score", min_score=1.0, joins=joins)


def _similarity(name: str) -> Part:
    """Sentence pairs scored from 0 to 5; those above 4 are pairs."""
    return Part(Table(name), "sentence1", "sentence2", score="score", min_score=4.000001)


_STACKEXCHANGE = "sentence-transformers/stackexchange-duplicates"

HUB_SOURCES: dict[str, tuple[Part, ...]] = {
    "ALLNLI": (Part(Table("sentence-transformers/all-nli", "triplet"), "anchor", "positive", "negative"),),
    "AMAZONQA": (Part(Table("embedding-data/Amazon-QA"), "query", "pos[0]"),),
    "CONCURRENTQA": (
        Part(Table("stanfordnlp/concurrentqa-retrieval"), "question", "pos_paras[0].text", "neg_paras[*].text"),
    ),
    "FEVER": (_retrieval("mteb/fever"),),
    "GITHUBISSUE": (Part(Table("WhereIsAI/github-issue-similarity", "positive"), "anchor", "positive"),),
    "GOOAQ": (Part(Table("tomaarsen/gooaq-hard-negatives", "triplet-5"), "question", "answer", _numbered(5)),),
    "MSMARCO": (_retrieval("mteb/msmarco"),),
    "PAQ": (Part(Table("embedding-data/PAQ_pairs"), "set[0]", "set[1]"),),
    "PUBMEDQA": (Part(Table("sentence-transformers/pubmedqa", "triplet-20"), "anchor", "positive", _numbered(20)),),
    "QQP": (Part(Table("embedding-data/QQP_triplets"), "set.query", "set.pos[0]", "set.neg"),),
    "SENTENCECOMP": (Part(Table("embedding-data/sentence-compression"), "set[1]", "set[0]"),),
    "STACKEXCHANGE": (
        Part(Table(_STACKEXCHANGE, "body-body-pair"), "body1", "body2", name="body"),
        Part(Table(_STACKEXCHANGE, "post-post-pair"), "post1", "post2", name="post"),
    ),
    "STACKOVERFLOW": (Part(Table("mteb/stackoverflowdupquestions-reranking"), "query", "positive[0]", "negative"),),
    "STS12": (_similarity("mteb/sts12-sts"),),
    "STSBENCHMARK": (_similarity("mteb/stsbenchmark-sts"),),
    "TRIVIAQA": (Part(Table("sentence-transformers/trivia-qa-triplet", "triplet"), "anchor", "positive", "negative"),),
    "WIKIHOW": (Part(Table("sentence-transformers/wikihow"), "text", "summary"),),
}
