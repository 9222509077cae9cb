"""The memo gives the tokenizer's own ids: on every text, pipeline, batch order and memory limit."""

import copy
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from neobert.tokenization import memo
from neobert.tokenization.encode import RustEncoder, make_encoder
from neobert.tokenization.memo import MemoEncoder, memo_rules
from neobert.tokenization.tokenizer import open_tokenizer
from neobert.tokenization.train import CASE_BOUNDARY

NASTY = [
    "\x00", "\x0b", "\x0c", "\x1c", "\x1f", "\x7f", "\x85", "\xa0", "\u200b", "\u2028", "\u3000", "\ufeff", "\ufffd",
    "\u0338", "\u0301", "=\u0338", " \u0301", "İ", "ß", "Σ", "ς", "ﬁ", "\u00a8", "東", "京", "한", "\u1100\u1161", "🙂",
    "👨\u200d👩", "\U000e0001", "[MASK]", "[SEP]", "[", "]", "[UNK]", "##a", "_", "__", "a_B", "aB", "9Z", "é",
    "e\u0301",    " ", "  ", "\n", "\t", "\r", "\r\n", "-", "'", "\\", "\x00B",
]  # fmt: skip
pieces = st.one_of(
    st.sampled_from(NASTY),
    st.text(alphabet="abcXYZ019_-.,()[]{}'\" \n\t", max_size=8),
    st.text(max_size=4),
)
documents = st.lists(pieces, max_size=12).map("".join).filter(lambda t: t.isascii() or not _surrogates(t))


def _surrogates(text):
    return any(0xD800 <= ord(c) < 0xE000 for c in text)


IDENTIFIERS = [normalizers.Replace(Regex(CASE_BOUNDARY), " "), normalizers.Replace("_", " ")]
BERT = {
    "lower": normalizers.BertNormalizer(lowercase=True),
    "lower, accents kept": normalizers.BertNormalizer(lowercase=True, strip_accents=False),
    "cased": normalizers.BertNormalizer(lowercase=False),
    "unclean": normalizers.BertNormalizer(clean_text=False, lowercase=True),
    "no chinese": normalizers.BertNormalizer(handle_chinese_chars=False, lowercase=False, strip_accents=True),
}
PIPELINES = {
    **{f"identifiers, {k}": (normalizers.Sequence([*IDENTIFIERS, v]), pre_tokenizers.BertPreTokenizer())
       for k, v in BERT.items()},
    **{k: (v, pre_tokenizers.BertPreTokenizer()) for k, v in BERT.items()},
    "lower before identifiers": (
        normalizers.Sequence([normalizers.Lowercase(), *IDENTIFIERS]), pre_tokenizers.BertPreTokenizer()),
    "clean before identifiers": (
        normalizers.Sequence([BERT["cased"], *IDENTIFIERS]), pre_tokenizers.BertPreTokenizer()),
    "nfc": (normalizers.NFC(), pre_tokenizers.BertPreTokenizer()),
    "nfkc": (normalizers.NFKC(), pre_tokenizers.BertPreTokenizer()),
    "nfd, accents": (
        normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]),
        pre_tokenizers.Whitespace()),
    "nfkd": (normalizers.NFKD(), pre_tokenizers.WhitespaceSplit()),
    "none": (None, pre_tokenizers.BertPreTokenizer()),
    "digits": (BERT["lower"], pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(True)])),
}  # fmt: skip


def build(name: str) -> Tokenizer:
    characters = sorted({c for text in NASTY for c in text} | set("abcxyzXYZ019_-.,()[]{}'\"eiss"))
    characters = [c for c in characters if not c.isspace()][:150]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "mask", "sep", "ab", "##ab", "##c", "XY"]
    vocabulary = {
        token: i for i, token in enumerate(dict.fromkeys([*names, *characters, *("##" + c for c in characters)]))
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=20))
    normalizer, pre_tokenizer = PIPELINES[name]
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens(names[:5])
    return tokenizer


ENCODERS: dict[str, tuple[RustEncoder, MemoEncoder, MemoEncoder]] = {}


def encoders(name: str) -> tuple[RustEncoder, MemoEncoder, MemoEncoder]:
    """The plain tokenizer, a memo that lives through all examples, and one that hardly remembers anything."""
    if name not in ENCODERS:
        tokenizer = build(name)
        rules, reason = memo_rules(tokenizer)
        assert rules is not None, reason
        rust = RustEncoder(tokenizer)
        ENCODERS[name] = rust, MemoEncoder(rust, rules), MemoEncoder(rust, rules, max_words=6, max_pieces=4)
    return ENCODERS[name]


def same(left, right):
    assert left[0].tolist() == right[0].tolist()
    assert left[1].tolist() == right[1].tolist()


@pytest.mark.parametrize("name", PIPELINES)
@settings(deadline=None, max_examples=60)
@given(st.lists(documents, min_size=1, max_size=6))
@example(["a\x0bb c", "plain words", "a\x0cb"])
@example(["[MASK] and x[SEP]y", "aB\x00Bc a_B_c __init__", "=\u0338 a=\u0338"])
@example(["x" * 50, ("ab" * 10 + "X") * 3, "", " ", "\n\nleading and trailing \n"])
def test_ids_equal_the_tokenizer(name, texts):
    rust, *memos = encoders(name)
    array = pa.array(texts, pa.string())
    expected = rust.encode(array)
    for encoder in memos:
        encoder._trusted, encoder._bypass = True, 0  # a sample this small would often be given to Rust
        same(encoder.encode(array), expected)
        encoder._trusted, encoder._bypass = True, 0
        same(encoder.encode(pa.concat_arrays([pa.array(["other"]), array]).slice(1)), expected)


def test_literal_special_tokens_are_text(tokenizer):
    rust, info = open_tokenizer(tokenizer)
    ids, _ = make_encoder(rust).encode(pa.array(["a [MASK] [SEP] [CLS] [PAD] b", "[MASK]x[SEP]"]))
    special = {info.mask_token_id, info.sep_token_id, info.cls_token_id, info.pad_token_id}
    assert len(ids)
    assert not special & set(ids.tolist())


def test_memory_limits_hold(tokenizer):
    rust, _ = open_tokenizer(tokenizer)
    rules, _ = memo_rules(rust)
    encoder = MemoEncoder(RustEncoder(rust), rules, max_words=100, max_pieces=50)
    for batch in range(20):
        texts = pa.array([f"word{batch}x{i} é{i}{batch} a{i}" for i in range(200)] * 3)
        encoder._trusted = True
        same(encoder.encode(texts), encoder.rust.encode(texts))
        assert len(encoder.words.slots) <= 100
        assert len(encoder.pieces.slots) <= 50
        assert encoder.words.count == len(encoder.words.slots)


def test_a_failed_batch_leaves_the_memo_right(tokenizer, monkeypatch):
    """The process goes on (a dask worker outlives a failed job), and its memo with it."""
    rust = RustEncoder(open_tokenizer(tokenizer)[0])
    rules, _ = memo_rules(rust.tokenizer)
    encoder = MemoEncoder(rust, rules)
    known = pa.array(["first words of a text " * 9])
    encoder.encode(known)

    def fail_on_accents(texts):
        if any(not text.isascii() for text in texts):
            raise MemoryError
        return RustEncoder.encode_list(rust, texts)

    monkeypatch.setattr(rust, "encode_list", fail_on_accents)
    with pytest.raises(MemoryError):
        encoder.encode(pa.array(["quite other plain words and one café " * 9]))
    monkeypatch.undo()
    for texts in (pa.array(["a third text learns something " * 9]), pa.array(["and a fourth overwrites it " * 9])):
        encoder.encode(texts)
    for texts in (known, pa.array(["a third text learns something " * 9]), pa.array(["and a fourth overwrites it"])):
        same(encoder.encode(texts), rust.encode(texts))


def test_words_that_hardly_repeat_go_to_rust(tokenizer):
    rust, _ = open_tokenizer(tokenizer)
    encoder = make_encoder(rust)
    generator = np.random.default_rng(0)
    texts = pa.array(["".join(map(chr, row)) for row in generator.integers(97, 123, (400, 64))])
    same(encoder.encode(texts), encoder.rust.encode(texts))
    assert len(encoder.words.slots) == 1
    assert encoder._bypass == memo.SHORTEST_BYPASS
    for _ in range(memo.SHORTEST_BYPASS + 1):
        encoder.encode(texts)
    assert encoder._bypass == 2 * memo.SHORTEST_BYPASS, "it looks again ever more rarely"
    text = pa.array(["the same few words again"] * 100)
    for _ in range(2 * memo.SHORTEST_BYPASS + 1):
        encoder.encode(text)
    assert len(encoder.words.slots) > 1, "and comes back to the memo"


def refuse(change) -> str:
    description = json.loads(build("lower").to_str())
    change(description)
    rules, reason = memo_rules(Tokenizer.from_str(json.dumps(description)))
    assert rules is None
    return reason


def test_pipelines_that_look_across_words_fall_back(byte_level, caplog):
    def set_to(key, part):
        value = json.loads(part.__getstate__())
        return lambda description: description.__setitem__(key, value)

    assert "ByteLevel" in refuse(set_to("pre_tokenizer", pre_tokenizers.ByteLevel()))
    assert "Metaspace" in refuse(set_to("pre_tokenizer", pre_tokenizers.Metaspace()))
    assert "Split" in refuse(set_to("pre_tokenizer", pre_tokenizers.Split(Regex(r"\s+"), "removed")))
    assert "none" in refuse(lambda description: description.__setitem__("pre_tokenizer", None))
    assert "Replace" in refuse(set_to("normalizer", normalizers.Replace(Regex("a b"), "c")))
    assert "Strip" in refuse(set_to("normalizer", normalizers.Strip()))
    token = {"id": 5, "content": "mask", "special": False, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": True}  # fmt: skip
    assert "added tokens" in refuse(lambda description: description["added_tokens"].append(token))
    rust, _ = open_tokenizer(byte_level)
    with caplog.at_level("INFO"):
        encoder = make_encoder(rust)
    assert isinstance(encoder, RustEncoder)
    assert "ByteLevel" in caplog.text
    texts = pa.array(["def f(x): return x\n", "", "café  \x0b"])
    ids, lengths = encoder.encode(texts)
    expected = [rust.encode(text, add_special_tokens=False).ids for text in texts.to_pylist()]
    assert ids.tolist() == [i for row in expected for i in row]
    assert lengths.tolist() == [len(row) for row in expected]


def test_rules_of_the_default_tokenizer(tokenizer):
    rules, _ = memo_rules(open_tokenizer(tokenizer)[0])
    assert rules == memo.MemoRules(punctuation=True, case=True, lowercase=True)
    cased = copy.deepcopy(build("lower before identifiers"))
    assert memo_rules(cased)[0] == memo.MemoRules(punctuation=True, case=False, lowercase=True)
