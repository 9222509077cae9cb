"""The tokenizer stage's work: train on the corpus's shards, or load by path or hub name; then check what was made."""

import logging
import shutil
from pathlib import Path

from neobert.config.tokenizer import TokenizerConfig
from neobert.errors import PipelineError
from neobert.io import read_manifest
from neobert.tokenization.tokenizer import TokenizerInfo, load_pretrained, open_tokenizer, save_tokenizer
from neobert.tokenization.train import SPECIAL, sample_texts, train_tokenizer

log = logging.getLogger(__name__)


def build_tokenizer(config: TokenizerConfig, corpus: Path, out: Path) -> TokenizerInfo:
    """Write ``out``, a folder that ``transformers.AutoTokenizer`` loads.

    Raises:
        PipelineError: nothing to train on, a vocabulary too small, or a tokenizer that an encoder cannot use.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    if config.name_or_path is not None:
        load_pretrained(config.name_or_path, out)
    else:
        names = sorted(name for name in read_manifest(corpus)["files"] if name.startswith("train/"))
        if not names:
            raise PipelineError(f"{corpus}: has no training shard; run `dvc repro corpus`")
        texts = sample_texts([corpus / name for name in names], config.training_characters)
        log.info("training a %s tokenizer on %d characters", config.algorithm, sum(map(len, texts)))
        save_tokenizer(train_tokenizer(texts, config), out, SPECIAL)
    _, info = open_tokenizer(out)
    log.info("tokenizer: vocabulary %d, sha256 %s", info.vocab_size, info.sha256[:12])
    return info
