"""Training, loading and saving a tokenizer: determinism, what transformers loads, what is refused."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from neobert.config.tokenizer import TokenizerConfig
from neobert.errors import PipelineError
from neobert.tokenization.build import build_tokenizer
from neobert.tokenization.tokenizer import open_tokenizer
from neobert.tokenization.train import sample_texts, train_tokenizer

TRAIN = """
import sys
from pathlib import Path
from neobert.config.tokenizer import TokenizerConfig
from neobert.tokenization.build import build_tokenizer
build_tokenizer(TokenizerConfig(algorithm=sys.argv[1], vocab_size=400), Path(sys.argv[2]), Path(sys.argv[3]))
"""


@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe"])
def test_fresh_processes_train_the_same_bytes(corpus, tokenizer, byte_level, tmp_path, algorithm):
    """tokenizers' hash maps are seeded per process, so one process would prove nothing."""
    subprocess.run([sys.executable, "-c", TRAIN, algorithm, corpus, tmp_path], check=True)
    here = tokenizer if algorithm == "wordpiece" else byte_level
    for name in ("tokenizer.json", "tokenizer_config.json"):
        digests = {hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in (here, tmp_path)}
        assert len(digests) == 1


@pytest.mark.parametrize("which", ["tokenizer", "byte_level"])
def test_transformers_gives_the_same_ids(which, request):
    folder = request.getfixturevalue(which)
    rust, info = open_tokenizer(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    text = "def getMaxPool_size(self): the café"
    encoded = loaded(text)
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert encoded["input_ids"] == [
        info.cls_token_id,
        *rust.encode(text, add_special_tokens=False).ids,
        info.sep_token_id,
    ]
    assert (loaded.mask_token_id, loaded.pad_token_id) == (info.mask_token_id, info.pad_token_id)
    assert len(loaded) == info.vocab_size


def test_identifiers_are_split_and_lower_cased(tokenizer):
    rust, _ = open_tokenizer(tokenizer)
    plain, split = (rust.encode(text, add_special_tokens=False).ids for text in ("max pool size", "maxPool_Size"))
    assert plain == split


def test_vocabulary_must_hold_the_alphabet():
    texts = ["".join(map(chr, range(0x4E00, 0x4E00 + 400))) * 2]
    with pytest.raises(PipelineError, match=r"tokenizer\.vocab_size \(500\) must be more than 805"):
        train_tokenizer(texts, TokenizerConfig(vocab_size=500))
    with pytest.raises(PipelineError, match="no text to train on"):
        train_tokenizer([], TokenizerConfig())


def chinese(characters: int) -> list[str]:
    """Texts that hold each of so many characters, the first ones more often (Zipf's law)."""
    return ["".join(chr(0x4E00 + i) for i in range(0, characters, step)) for step in range(1, 60)] * 2


def unknown_share(tokenizer: Tokenizer, texts: list[str]) -> float:
    ids = [i for text in texts for i in tokenizer.encode(text, add_special_tokens=False).ids]
    return ids.count(tokenizer.token_to_id("[UNK]")) / len(ids)


def test_a_larger_vocabulary_keeps_more_of_a_large_alphabet(caplog):
    texts = chinese(3000)
    with caplog.at_level("WARNING"):
        tokenizer = train_tokenizer(texts, TokenizerConfig(vocab_size=16_384))
    assert not caplog.text
    assert unknown_share(tokenizer, texts) < 0.0005


def test_characters_without_room_are_said(caplog):
    texts = chinese(3000)
    with caplog.at_level("WARNING"):
        tokenizer = train_tokenizer(texts, TokenizerConfig(vocab_size=8000))
    share = unknown_share(tokenizer, texts)
    assert (
        f"room for 2000 of the sample's 3000 characters: the others, {share:.2%} of its text, read [UNK]" in caplog.text
    )
    assert "tokenizer.algorithm: bpe" in caplog.text
    remedy = int(caplog.text.rpartition("tokenizer.vocab_size: ")[2])
    assert unknown_share(train_tokenizer(texts, TokenizerConfig(vocab_size=remedy)), texts) < 0.0005


def test_rare_characters_of_a_small_alphabet_take_no_room(caplog):
    """Web text: a few letters make nearly all of it, and thousands of symbols the rest."""
    texts = ["some words of plain text " * 400] * 400 + ["".join(map(chr, range(0x4E00, 0x4E00 + 1500)))] * 2
    with caplog.at_level("WARNING"):
        tokenizer = train_tokenizer(texts, TokenizerConfig(vocab_size=16_384))
    assert sum(word[0] >= "\u4e00" for word in tokenizer.get_vocab()) < 1000
    assert not caplog.text


def shards(folder: Path, groups: list[list[str]], per_shard: int = 2) -> list[Path]:
    """Parquet files of ``per_shard`` row groups each."""
    paths = []
    for start in range(0, len(groups), per_shard):
        paths.append(folder / f"part-{start:05d}.parquet")
        with pq.ParquetWriter(paths[-1], pa.schema([("text", pa.string())])) as writer:
            for texts in groups[start : start + per_shard]:
                writer.write_table(pa.table({"text": texts}))
    return paths


def test_a_sample_of_long_documents_is_as_long_as_asked(tmp_path):
    books = [[chr(ord("a") + i) * 300_000] * 2 for i in range(12)]
    texts = sample_texts(shards(tmp_path, books), 120_000)
    assert [(text[0], len(text)) for text in texts] == [(chr(ord("a") + i), 10_000) for i in range(12)]


def test_a_sample_of_fewer_characters_than_row_groups_need_is_spread_over_them(tmp_path):
    groups = [[f"{i:03d} " * 5000] for i in range(100)]
    texts = sample_texts(shards(tmp_path, groups), 40_000)
    assert [text[:3] for text in texts] == ["000", "025", "050", "075"]
    assert sum(map(len, texts)) == 40_000
    assert [text[:3] for text in sample_texts(shards(tmp_path, groups), 1000)] == ["000"]


def test_a_sample_keeps_a_document_that_ends_a_little_past_its_share(tmp_path):
    words = ["x" * 999 + str(i % 10) for i in range(200)]
    texts = sample_texts(shards(tmp_path, [words]), 20_500)
    assert texts == words[::9][:21]


def test_a_loaded_tokenizer_is_the_same(corpus, tokenizer, tmp_path):
    info = build_tokenizer(TokenizerConfig(name_or_path=str(tokenizer)), corpus, tmp_path)
    assert info == open_tokenizer(tokenizer)[1]


def test_a_tokenizer_without_mask_is_refused(corpus, tmp_path):
    plain = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "[PAD]": 2}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]").save_pretrained(tmp_path / "plain")
    with pytest.raises(PipelineError, match="has no cls, sep, mask token"):
        build_tokenizer(TokenizerConfig(name_or_path=str(tmp_path / "plain")), corpus, tmp_path / "out")


def test_first_and_last_token_serve_as_cls_and_sep(corpus, tmp_path):
    """EuroBERT's tokenizer names them bos and eos."""
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"}
    words = {word: i for i, word in enumerate([*names.values(), "a"])}
    rust = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=rust, **names).save_pretrained(tmp_path / "theirs")
    info = build_tokenizer(TokenizerConfig(name_or_path=str(tmp_path / "theirs")), corpus, tmp_path / "out")
    assert (info.pad_token_id, info.cls_token_id, info.sep_token_id, info.mask_token_id) == (0, 1, 2, 3)


ROBERTA = {"pad": "<pad>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
BERT = {role: f"[{role.upper()}]" for role in ROBERTA}


def theirs(folder: Path, roles: dict[str, str], post_processor=None) -> dict:
    """A word-level tokenizer from elsewhere; returns its words and their ids."""
    words = {word: i for i, word in enumerate([*roles.values(), "<eos>", "a", "b"])}
    rust = Tokenizer(models.WordLevel(words, unk_token=roles["pad"]))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if post_processor is not None:
        rust.post_processor = post_processor
    rust.enable_padding(length=16)  # as published sentence encoders have it
    rust.enable_truncation(2)
    names = {f"{role}_token": word for role, word in roles.items()}
    PreTrainedTokenizerFast(tokenizer_object=rust, **names).save_pretrained(folder)
    return words


@pytest.mark.parametrize(
    "post_processor",
    [
        None,
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="$A <eos>", pair="$A <eos> $B:1 <eos>:1", special_tokens=[("<eos>", 4)]),
        processors.TemplateProcessing(single="[CLS] $A", pair="[CLS] $A $B:1", special_tokens=[("[CLS]", 1)]),
    ],
    ids=["none", "byte-level", "eos", "first only"],
)
def test_a_tokenizer_without_cls_and_sep_around_texts_gets_them(corpus, tmp_path, caplog, post_processor):
    """Packing puts them around every segment, so texts of pairs and of the exported model must have them too."""
    words = theirs(tmp_path / "theirs", BERT, post_processor)
    with caplog.at_level("WARNING"):
        build_tokenizer(TokenizerConfig(name_or_path=str(tmp_path / "theirs")), corpus, tmp_path / "out")
    assert "does not put [CLS] and [SEP] around a text" in caplog.text
    expected = [words[word] for word in ("[CLS]", "a", "b", "a", "[SEP]")]
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a b a")["input_ids"] == expected
    rust, info = open_tokenizer(tmp_path / "out")
    assert rust.encode("a b a").ids == expected
    pair = ["[CLS]", "a", "[SEP]", "b", "[SEP]"]
    assert rust.encode("a", "b").ids == [words[word] for word in pair]
    assert (info.pad_token_id, info.unk_token_id, info.mask_token_id, info.vocab_size) == (0, 0, 3, 7)


@pytest.mark.parametrize("how", ["roberta", "template"])
def test_cls_and_sep_of_other_names_stay(corpus, tmp_path, caplog, how):
    first, last = ("<s>", 1), ("</s>", 2)
    template = "<s> $A </s>", "<s> $A </s> </s> $B </s>", [first, last]
    own = processors.RobertaProcessing(last, first)
    if how == "template":
        own = processors.TemplateProcessing(single=template[0], pair=template[1], special_tokens=template[2])
    words = theirs(tmp_path / "theirs", ROBERTA, own)
    build_tokenizer(TokenizerConfig(name_or_path=str(tmp_path / "theirs")), corpus, tmp_path / "out")
    assert "around" not in caplog.text
    rust, _ = open_tokenizer(tmp_path / "out")
    assert rust.encode("a").ids == [words["<s>"], words["a"], words["</s>"]]
    assert rust.encode("a", "b").ids == [words[word] for word in ("<s>", "a", "</s>", "</s>", "b", "</s>")]


def test_an_unreachable_or_missing_tokenizer_is_one_line(corpus, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("owner/name", str(tmp_path)):
        with pytest.raises(PipelineError, match=r"tokenizer\.name_or_path") as error:
            build_tokenizer(TokenizerConfig(name_or_path=name), corpus, tmp_path / "out")
        assert "\n" not in str(error.value)
    with pytest.raises(PipelineError, match=r"tokenizer\.json: does not exist"):
        open_tokenizer(tmp_path)


def test_special_tokens_of_transformers_4_files_are_found(tokenizer, tmp_path):
    """transformers 4 wrote special_tokens_map.json with mappings; both forms are read."""
    (tmp_path / "tokenizer.json").write_bytes((Path(tokenizer) / "tokenizer.json").read_bytes())
    names = {f"{role}_token": {"content": f"[{role.upper()}]"} for role in ("pad", "unk", "cls", "sep", "mask")}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
    assert open_tokenizer(tmp_path)[1] == open_tokenizer(tokenizer)[1]
