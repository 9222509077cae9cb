"""Repackage a training checkpoint as a Hugging Face model directory, without training code or a GPU.

    python -m neobert.export.dcp_to_hf runs/pretrain-<fingerprint>/checkpoints/<step> OUT [--max-shard-size-mb 5000]

The checkpoint is verified, its weights read (whole, however many ranks wrote them), renamed for transformers'
classes as `stages.export` does, and written by torch's HuggingFaceStorageWriter, sharded and consolidated: what
comes out loads with `AutoModelForMaskedLM.from_pretrained` (of a fine-tuning's checkpoint the encoder alone counts, as
its training does not keep the language-model head). What the model is stands in the run's model_checkpoints/<step>,
beside. Cost: one read and two writes of the weights, all of them in memory once.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from transformers import PreTrainedModel

from neobert.errors import PipelineError
from neobert.export.custom import custom_model, write_code
from neobert.export.native import native_model, obstacles
from neobert.export.tokenizer import write_tokenizer
from neobert.io import clear_write_errors, verify_manifest
from neobert.model.storage import TIED, TOKENIZER, ModelInfo, read_info
from neobert.training.model_checkpoint import MODEL_CHECKPOINTS, read_model_state

log = logging.getLogger(__name__)
EMBEDDINGS = "encoder.embeddings.weight"
LOGIT_SCALE = "logit_scale.weight"


def repackage(checkpoint: Path, target: Path, max_shard_bytes: int) -> None:
    """Write the model of `checkpoint` into the new directory `target`.

    Raises:
        PipelineError: the checkpoint is damaged or not one of a model, or `target` is there or cannot be written.
    """
    if target.exists():
        raise PipelineError(f"{target}: exists; name a new directory")
    verify_manifest(checkpoint)
    step = checkpoint.resolve()  # whatever link or dot named it
    described = step.parent.parent / MODEL_CHECKPOINTS / step.name
    info = read_info(described)
    state = masked_lm_state(checkpoint, info)
    native = not obstacles(info.model)
    model: PreTrainedModel = native_model(state, info, "mean") if native else custom_model(state, info, "mean")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".dcp-to-hf-") as scratch, clear_write_errors(target):
        staged = Path(scratch) / "model"
        staged.mkdir()
        write_weights(model, staged, max_shard_bytes)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(staged)
        if not native:
            write_code(staged)
        write_tokenizer(described / TOKENIZER, staged, info)
        staged.rename(target)


def masked_lm_state(checkpoint: Path, info: ModelInfo) -> dict[str, Tensor]:
    """`MaskedLM.state_dict()` out of whatever objective was trained, tied decoder included.

    Raises:
        PipelineError: the checkpoint holds no encoder, or not what the model's decoder has of its own.
    """
    stored = read_model_state(checkpoint)
    prefixes = [key.removesuffix(EMBEDDINGS) for key in stored if key.endswith(EMBEDDINGS)]
    if len(prefixes) != 1:
        raise PipelineError(f"{checkpoint}: holds {len(prefixes)} encoders; only a model's checkpoint is repackaged")
    state = {k.removeprefix(prefixes[0]): v for k, v in stored.items() if k.startswith(prefixes[0])}
    if info.model.tie_word_embeddings:
        state[TIED] = state[EMBEDDINGS]
    # Fine-tuning trains the encoder alone: it keeps neither a decoder that is not tied nor an nGPT's scales of one.
    parts = {TIED: "decoder (a contrastive checkpoint of an untied model)"}
    if info.model.ngpt:
        parts[LOGIT_SCALE] = "logit_scale (a contrastive checkpoint of an nGPT)"
    for key, part in parts.items():
        if key not in state:
            raise PipelineError(f"{checkpoint}: holds no {part}; export models/contrastive")
    return state


def write_weights(model: PreTrainedModel, directory: Path, max_shard_bytes: int) -> None:
    """The model's tensors as model-0000i-of-0000n.safetensors and their index."""
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tied = model.get_input_embeddings().get_parameter("weight")
        kept = next(k for k, v in state.items() if v.data_ptr() == tied.data_ptr())
        state = {k: v for k, v in state.items() if k == kept or v.data_ptr() != tied.data_ptr()}
    files, size = {}, 0
    index = 1
    for key, value in state.items():
        if size and size + value.nbytes > max_shard_bytes:
            index, size = index + 1, 0
        files[key], size = index, size + value.nbytes
    writer = HuggingFaceStorageWriter(
        str(directory), fqn_to_index_mapping=files, save_distributed=True, enable_consolidation=True
    )
    dcp.save(state, storage_writer=writer, no_dist=True)
    shutil.rmtree(directory / "sharded")
    log.info("%d tensors in %d file(s)", len(files), index)


def main() -> None:
    parser = argparse.ArgumentParser(description="Repackage a training checkpoint as a Hugging Face directory.")
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="runs/<stage>-<fingerprint>/checkpoints/<step>"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a directory that does not exist yet")
    parser.add_argument("--max-shard-size-mb", type=int, default=5000)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with torch.no_grad():
            repackage(args.checkpoint, args.out, args.max_shard_size_mb * 10**6)
    except PipelineError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{args.out} loads with transformers.AutoModelForMaskedLM.from_pretrained")


if __name__ == "__main__":
    main()
