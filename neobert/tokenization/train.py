"""Train a WordPiece or byte-level BPE tokenizer on the corpus, deterministically.

``tokenizers``' WordPiece trainer numbers the ``##x`` pieces in the order of a hash map and breaks ties between merges
by those numbers, so two runs yield different vocabularies. Here the alphabet is counted first and both forms of every
character are handed to the trainer in a fixed order; the tokenizer is then rebuilt from the trained vocabulary.
Cost: about 4 MB of text a CPU-second.
"""

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

import pyarrow.parquet as pq
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from neobert.config.tokenizer import TokenizerConfig
from neobert.errors import PipelineError
from neobert.tokenization.tokenizer import surround

log = logging.getLogger(__name__)
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ALPHABET = 1000  # characters kept in any case
COVERAGE = 0.9995  # of the text, by more characters: SentencePiece's character_coverage for large alphabets
ALPHABET_SHARE = 4  # but two forms of each may fill half of the vocabulary at most; the rest is for words
CASE_BOUNDARY = "(?<=[a-z0-9])(?=[A-Z])"
SAMPLE_BATCH = 256
SMALLEST_SHARE = 10_000  # characters of a row group: less is hardly worth reading its 4 MB
OVERRUN = 16  # a sixteenth of a share


def sample_texts(shards: list[Path], characters: int) -> list[str]:
    """Documents from every shard in turn, evenly over each, until ``characters`` are reached.

    Evenly: of each shard's row groups, the first documents, so that no package or file is left out; where there are so
    many row groups that a share would be less than ``SMALLEST_SHARE``, of as many as give one, at equal distances.
    A document that is longer than what is left of its share is cut there, unless it ends soon after. Memory: what is
    asked for, to a sixteenth, and one row group.
    """
    texts: list[str] = []
    groups = [(path, group) for path in shards for group in range(pq.ParquetFile(path).num_row_groups)]
    most = max(characters // SMALLEST_SHARE, 1)
    if len(groups) > most:
        groups = [groups[i * len(groups) // most] for i in range(most)]
    share = -(-characters // max(len(groups), 1))
    for path, group in groups:
        remaining = share
        table = pq.ParquetFile(path).read_row_group(group, columns=["text"])
        stride = max(1, int(table.nbytes // max(share, 1)))
        for text in table.column("text").to_pylist()[::stride]:
            texts.append(text if len(text) <= remaining + share // OVERRUN else text[:remaining])
            remaining -= len(text)
            if remaining <= 0:
                break
    return texts


def normalizer(config: TokenizerConfig) -> normalizers.Normalizer:
    """The normalizer that ``config`` describes, made of parts that every ``transformers`` loads from tokenizer.json."""
    parts: list[normalizers.Normalizer] = []
    if config.split_identifiers:
        parts += [normalizers.Replace(Regex(CASE_BOUNDARY), " "), normalizers.Replace("_", " ")]
    if config.algorithm == "wordpiece":
        parts.append(
            normalizers.BertNormalizer(
                clean_text=True,
                handle_chinese_chars=True,
                strip_accents=config.strip_accents,
                lowercase=config.lowercase,
            )
        )
    elif config.lowercase:
        parts.append(normalizers.Lowercase())
    return normalizers.Sequence(parts)


def train_tokenizer(texts: list[str], config: TokenizerConfig) -> Tokenizer:
    """Train on ``texts``; equal texts give equal tokenizers, byte for byte.

    Raises:
        PipelineError: there is no text, or the vocabulary is too small for the alphabet.
    """
    if not any(texts):
        raise PipelineError("tokenizer: the corpus holds no text to train on; check the stage corpus")
    return _wordpiece(texts, config) if config.algorithm == "wordpiece" else _bpe(texts, config)


def _wordpiece(texts: list[str], config: TokenizerConfig) -> Tokenizer:
    specials = list(SPECIAL.values())
    draft = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
    draft.normalizer = normalizer(config)
    draft.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet = _alphabet(texts, draft.normalizer, config)
    smallest = len(specials) + 2 * len(alphabet)
    if config.vocab_size <= smallest:
        raise PipelineError(
            f"tokenizer.vocab_size ({config.vocab_size}) must be more than {smallest}: the special tokens and two "
            f"forms of each of the corpus's {len(alphabet)} characters"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=specials + ["##" + character for character in alphabet],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    draft.train_from_iterator(_batches(texts), trainer, length=len(texts))
    tokenizer = Tokenizer(models.WordPiece(draft.get_vocab(), unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizer(config)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _finish(tokenizer)


def _bpe(texts: list[str], config: TokenizerConfig) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizer(config)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_batches(texts), trainer, length=len(texts))
    tokenizer.decoder = decoders.ByteLevel()
    return _finish(tokenizer)


def _finish(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    surround(tokenizer, SPECIAL["cls_token"], SPECIAL["sep_token"])
    log.info("trained a vocabulary of %d", tokenizer.get_vocab_size())
    return tokenizer


def _batches(texts: list[str]) -> Iterable[list[str]]:
    return (texts[start : start + SAMPLE_BATCH] for start in range(0, len(texts), SAMPLE_BATCH))


def _alphabet(texts: list[str], normalize: normalizers.Normalizer, config: TokenizerConfig) -> list[str]:
    """The most frequent characters after normalization, in a fixed order: ``ALPHABET``, or as many as cover the text.

    More would cost merges and buy nothing: English web text has thousands of characters in its last 0.01 %.
    """
    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(text)
    counts: Counter[str] = Counter()
    for character, count in raw.items():
        for normal in normalize.normalize_str(character):
            if not normal.isspace():
                counts[normal] += count
    kept = sorted((c for c in counts if counts[c] >= config.min_frequency), key=lambda c: (-counts[c], c))
    covered = list(accumulate(counts[c] for c in kept))
    needed = bisect_left(covered, COVERAGE * sum(counts[c] for c in kept)) + 1
    limit = max(ALPHABET, min(needed, config.vocab_size // ALPHABET_SHARE))
    if limit < needed:
        log.warning(
            "tokenizer.vocab_size (%d) has room for %d of the sample's %d characters: the others, %s of its text, read "
            "%s; set tokenizer.algorithm: bpe, which leaves none out, or tokenizer.vocab_size: %d",
            config.vocab_size,
            limit,
            len(kept),
            f"{1 - covered[limit - 1] / covered[-1]:.2%}",
            SPECIAL["unk_token"],
            ALPHABET_SHARE * needed,
        )
    return sorted(kept[:limit])
