"""An exact memo of words in front of a Rust tokenizer.

Text repeats its words. Where nothing in a tokenizer's pipeline looks across white space, the ids of a text are the ids
of its words, one after the other, so each distinct word need be tokenized once: Arrow splits a batch at ASCII white
space and finds its distinct words, a dict maps them to slots of a table of ids, and numpy gathers the table. Words
that are new are cut again, at ASCII punctuation (and case boundaries, where the normalizer splits identifiers), and
looked up in a second memo of pieces; only new pieces, and new words with other characters, go to Rust.

Exactness: ``memo_rules`` admits only normalizers and pre-tokenizers known to be local to words; documents with
vertical tabs or form feeds, which Arrow takes as white space and BERT's normalizer deletes, go to Rust whole.
Cost: about 15 MB of source code a CPU-second with an empty memo, 45 with a full one (Rust: 4). Text whose words hardly
repeat is noticed on a sample and given to Rust. Memory is bounded by ``MAX_WORDS`` and ``MAX_PIECES``.
"""

import json
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from neobert.tokenization.encode import RustEncoder
from neobert.tokenization.train import CASE_BOUNDARY

log = logging.getLogger(__name__)
MAX_WORDS = 700_000
MAX_PIECES = 300_000
RUST_BATCH = 8192
PROBE = 64  # a sample is one 64th of a batch
MOSTLY_NEW = 0.5  # share of a sample's bytes in unseen pieces above which the memo cannot pay
SHORTEST_BYPASS, LONGEST_BYPASS = 4, 64  # batches

_LOCAL_NORMALIZERS = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"}
_LOCAL_SPLITTERS = {"BertPreTokenizer", "WhitespaceSplit", "Whitespace"}
_LOCAL_FOLLOWERS = _LOCAL_SPLITTERS | {"Punctuation", "Digits"}
_UNDERSCORE = {"type": "Replace", "pattern": {"String": "_"}, "content": " "}
_CASE = {"type": "Replace", "pattern": {"Regex": CASE_BOUNDARY}, "content": " "}
_PRINTABLE = r"^[!-~]+$"


@dataclass(frozen=True)
class MemoRules:
    """How words may be cut into pieces that are tokenized on their own.

    Attributes:
        punctuation: at every ASCII punctuation character (which is a piece of its own).
        case: where a capital follows a small letter or digit.
        lowercase: pieces that differ only in case have the same ids.
    """

    punctuation: bool
    case: bool
    lowercase: bool


def memo_rules(tokenizer: Tokenizer) -> tuple[MemoRules | None, str]:
    """What the pipeline of ``tokenizer`` allows; ``None`` and the reason where ids of words are not local to them."""
    description = json.loads(tokenizer.to_str())
    if any(not token["special"] for token in description["added_tokens"]):
        return None, "it has added tokens that are not special"
    if description["model"].get("dropout"):
        return None, "its BPE drops merges at random"
    steps = _sequence(description["normalizer"], "normalizers")
    lowered = case = False
    for step in steps:
        if step == _CASE:
            case = not lowered
        elif step["type"] not in _LOCAL_NORMALIZERS and step != _UNDERSCORE:
            return None, f"normalizer {step['type']}"
        lowered |= step["type"] == "Lowercase" or (step["type"] == "BertNormalizer" and step["lowercase"])
    splitters = _sequence(description["pre_tokenizer"], "pretokenizers")
    names = [step["type"] for step in splitters]
    if not names or names[0] not in _LOCAL_SPLITTERS or not set(names) <= _LOCAL_FOLLOWERS:
        return None, f"pre-tokenizer {' + '.join(names) or 'none'}"
    punctuation = names == ["BertPreTokenizer"]
    return MemoRules(punctuation, punctuation and case, lowered), ""


def _sequence(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return [step for inner in part[key] for step in _sequence(inner, key)] if part["type"] == "Sequence" else [part]


class _Table:
    """Strings -> ids: a dict of slots, and all ids in one growing array."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.slots: dict[str, int] = {"": 0}
        self.flat = np.empty(1 << 16, np.int32)
        self.ends = np.zeros(1 << 14, np.int64)  # of slot s: its ids are flat[ends[s - 1] : ends[s]]
        self.count = 1  # slot 0 is the empty string

    def find(self, strings: list[str]) -> np.ndarray:
        """Slots, int64 [N]; -1 where a string is unknown."""
        get = self.slots.get
        return np.array([get(string, -1) for string in strings], np.int64)

    def append(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Store the ids of new strings and return their slots; ``remember`` or ``forget`` them afterwards."""
        used = int(self.ends[self.count - 1])
        self.flat = _grown(self.flat, used, len(ids))
        self.ends = _grown(self.ends, self.count, len(lengths))
        self.flat[used : used + len(ids)] = ids
        self.ends[self.count : self.count + len(lengths)] = used + np.cumsum(lengths)
        self.count += len(lengths)
        return np.arange(self.count - len(lengths), self.count)

    def remember(self, strings: list[str], slots: np.ndarray) -> None:
        """Keep as many of the appended strings as the limit allows; the others are forgotten by ``trim``."""
        room = max(self.limit - len(self.slots), 0)
        self.slots.update(zip(strings[:room], slots[:room].tolist(), strict=True))

    def trim(self) -> None:
        """Drop ids appended for strings that were not remembered."""
        self.count = len(self.slots)

    def gather(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids of ``slots`` one after the other, and how many each has."""
        starts = np.where(slots > 0, self.ends[slots - 1], 0)
        lengths = self.ends[slots] - starts
        before = np.cumsum(lengths) - lengths
        source = np.repeat(starts - before, lengths)
        source += np.arange(len(source))
        return self.flat[source], lengths


def _grown(array: np.ndarray, used: int, more: int) -> np.ndarray:
    if used + more <= len(array):
        return array
    bigger = np.zeros(max(2 * len(array), used + more), array.dtype)
    bigger[:used] = array[:used]
    return bigger


class MemoEncoder:
    """See the module; one instance may serve many shards, and its results do not depend on what it has seen."""

    def __init__(
        self, rust: RustEncoder, rules: MemoRules, max_words: int = MAX_WORDS, max_pieces: int = MAX_PIECES
    ) -> None:
        self.rust, self.rules = rust, rules
        self.words, self.pieces = _Table(max_words), _Table(max_pieces)
        self._trusted = False  # the last batch repeated words enough
        self._bypass = self._last_bypass = 0

    def encode(self, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts in one flat int32 array, and the number of ids of each text, int64 [N]."""
        if self._bypass:
            self._bypass -= 1
            return self.rust.encode(texts)
        if not self._trusted and not self._pays(texts):
            self._bypass = self._last_bypass = min(max(2 * self._last_bypass, SHORTEST_BYPASS), LONGEST_BYPASS)
            return self.rust.encode(texts)
        self._trusted, self._last_bypass = True, 0
        special = _special_documents(texts)
        if special is None:
            return self._encode(texts)
        return self._encode_around(texts, special)

    def _pays(self, texts: pa.StringArray) -> bool:
        """Whether the words of a sample of ``texts`` repeat, or are known already."""
        sample = texts.take(pa.array(np.arange(0, len(texts), PROBE)))
        words = _words(sample).flatten().unique()
        known = self.words.find(words.to_pylist()) >= 0
        words = words.filter(pa.array(~known))
        new, others = self._cut(words)[1:]
        unseen = new.flatten().unique()
        fresh = unseen.filter(pa.array(self.pieces.find(unseen.to_pylist()) < 0))
        return _bytes(fresh) + _bytes(others) <= MOSTLY_NEW * max(_bytes(sample), 1)

    def _encode(self, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        split = _words(texts)
        distinct = split.flatten().dictionary_encode()
        strings = distinct.dictionary.to_pylist()
        slots = self.words.find(strings)
        missing = np.flatnonzero(slots < 0)
        try:
            if len(missing):
                new = distinct.dictionary.take(pa.array(missing))
                slots[missing] = self._learn(new, [strings[i] for i in missing.tolist()])
            ids, lengths = self.words.gather(slots[distinct.indices.to_numpy()])
        finally:  # also when a batch fails half-way: a dask worker goes on, and its memo with it
            self.words.trim()
            self.pieces.trim()
        self._trusted = len(missing) == 0 or _bytes(new) <= MOSTLY_NEW * _bytes(texts)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        offsets = split.offsets.to_numpy() - split.offsets[0].as_py()
        return ids, np.diff(ends[offsets])

    def _encode_around(self, texts: pa.StringArray, special: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode documents where ``special`` (bool [N]) holds by Rust, the others by the memo, in order."""
        parts = [
            (np.flatnonzero(special), self.rust.encode(texts.filter(pa.array(special)))),
            (np.flatnonzero(~special), self._encode(texts.filter(pa.array(~special)))),
        ]
        lengths = np.zeros(len(texts), np.int64)
        for index, (_, counts) in parts:
            lengths[index] = counts
        starts = np.cumsum(lengths) - lengths
        flat = np.empty(int(lengths.sum()), np.int32)
        for index, (ids, counts) in parts:
            before = np.cumsum(counts) - counts
            flat[np.repeat(starts[index] - before, counts) + np.arange(len(ids))] = ids
        return flat, lengths

    def _learn(self, words: pa.StringArray, strings: list[str]) -> np.ndarray:
        """Tokenize new words and return their slots."""
        plain, pieces, others = self._cut(words)
        slots = np.empty(len(words), np.int64)
        if len(pieces):
            found = pieces.flatten().dictionary_encode()
            names = found.dictionary.to_pylist()
            piece_slots = self.pieces.find(names)
            missing = np.flatnonzero(piece_slots < 0).tolist()
            new = [names[i] for i in missing]
            piece_slots[missing] = self._append(self.pieces, new)
            ids, lengths = self.pieces.gather(piece_slots[found.indices.to_numpy()])
            ends = np.concatenate([[0], np.cumsum(lengths)])
            slots[plain] = self.words.append(ids, np.diff(ends[pieces.offsets.to_numpy()]))
        if len(others):
            slots[~plain] = self.words.append(*self._rust(others.to_pylist()))
        # In the order of slots, so that what the limit leaves room for is what `trim` keeps.
        order = np.argsort(slots)
        self.words.remember([strings[i] for i in order.tolist()], slots[order])
        return slots

    def _append(self, table: _Table, strings: list[str]) -> np.ndarray:
        if not strings:
            return np.empty(0, np.int64)
        slots = table.append(*self._rust(strings))
        table.remember(strings, slots)
        return slots

    def _rust(self, strings: list[str]) -> tuple[np.ndarray, np.ndarray]:
        parts = [self.rust.encode_list(strings[i : i + RUST_BATCH]) for i in range(0, len(strings), RUST_BATCH)]
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([lengths for _, lengths in parts])

    def _cut(self, words: pa.StringArray) -> tuple[np.ndarray, pa.ListArray, pa.StringArray]:
        """Which words are cut (bool [N]), the pieces of those, and the others.

        Only words of printable ASCII are cut: on them every admitted normalizer but lower-casing and the identifier
        rules changes nothing, so pieces that those rules part anyway can be tokenized one by one.
        """
        if not self.rules.punctuation:
            return np.zeros(len(words), bool), pa.array([], pa.list_(pa.string())), words
        plain = pc.match_substring_regex(words, _PRINTABLE)
        cut = words.filter(plain)
        cut = pc.replace_substring_regex(cut, r"([!-/:-@\[-`{-~])", r" \1 ")
        if self.rules.case:
            cut = pc.replace_substring_regex(cut, "([a-z0-9])([A-Z])", r"\1 \2")
        if self.rules.lowercase:
            cut = pc.ascii_lower(cut)
        return plain.to_numpy(zero_copy_only=False), _words(cut), words.filter(pc.invert(plain))


def _words(texts: pa.StringArray) -> pa.ListArray:
    """Split at runs of ASCII white space; a text's first and last word may be empty."""
    return pc.ascii_split_whitespace(texts)


def _bytes(strings: pa.StringArray) -> int:
    return pc.sum(pc.binary_length(strings)).as_py() or 0


def _special_documents(texts: pa.StringArray) -> np.ndarray | None:
    """Documents with a vertical tab or form feed (bool [N]), or ``None`` where there is none."""
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
    if not ((data == 11) | (data == 12)).any():
        return None
    found = pc.match_substring_regex(texts, "[\x0b\x0c]").to_numpy(zero_copy_only=False)
    return found if found.any() else None
