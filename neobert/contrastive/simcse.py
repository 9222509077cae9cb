"""SimCSE on the pretraining text: a text's positive is itself, encoded again under other dropout.

With probability ``contrastive.pretraining_prob`` a step takes documents instead of pairs, which keeps a little of the
pretraining text in sight and costs no labels. The documents of a step are drawn without repeats, as a pure function of
(seed, step). Cost: the token shards are memory-mapped; a step reads its own documents.
Source: Gao et al. 2021 (unsupervised).
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from neobert.contrastive.pairs import Texts
from neobert.errors import PipelineError
from neobert.io import read_manifest


class PretrainingTexts:
    """Tokenised documents (``data/tokens``), each cut to a maximum length, with special tokens.

    Args:
        directory: tokens, whose ``train`` split is taken.
        cls_token_id, sep_token_id: put around each document.
        max_length: tokens of a text, special tokens included.
        prob: share of the steps.
        seed: of the draws.

    Raises:
        PipelineError: there are no tokens, or they are of another tokenizer than ``tokenizer_sha256``.
    """

    def __init__(
        self,
        directory: Path,
        *,
        cls_token_id: int,
        sep_token_id: int,
        max_length: int,
        prob: float,
        seed: int,
        tokenizer_sha256: str,
    ) -> None:
        manifest = read_manifest(directory)
        if manifest["tokenizer"]["sha256"] != tokenizer_sha256:
            raise PipelineError(f"{directory} was made with another tokenizer than the model's; run `dvc repro`")
        self.arrays = [self._read(path) for path in sorted((directory / "train").glob("part-*.arrow"))]
        self.starts = np.cumsum([0, *(len(array) for array in self.arrays)])
        self.documents = int(self.starts[-1])
        if not self.documents:
            raise PipelineError(f"contrastive.pretraining_prob: {directory / 'train'} has no documents; set it to 0")
        self.cls, self.sep, self.max_length = cls_token_id, sep_token_id, max_length
        self.prob, self.seed = prob, seed

    @staticmethod
    def _read(path: Path) -> pa.Array:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_stream(source).read_all().column("input_ids").combine_chunks()

    def takes(self, step: int) -> bool:
        """Whether this step takes documents."""
        return bool(np.random.default_rng([self.seed, 5, step]).random() < self.prob)

    def batch(self, step: int, size: int) -> np.ndarray:
        """The documents of a step."""
        size = min(size, self.documents)
        return np.random.default_rng([self.seed, 6, step]).choice(self.documents, size, replace=False)

    def take(self, rows: np.ndarray) -> Texts:
        """Each document as its own positive."""
        texts = [self._text(int(row)) for row in rows]
        return Texts(texts, texts, [[] for _ in texts])

    def _text(self, row: int) -> np.ndarray:
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        values = self.arrays[part][row - int(self.starts[part])].values
        ids = values.slice(0, self.max_length - 2).to_numpy(zero_copy_only=False)
        return np.concatenate([[self.cls], ids, [self.sep]]).astype(np.int32)
