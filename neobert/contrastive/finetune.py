"""Contrastive fine-tuning: the longer-context encoder becomes an embedding model.

Steps: load the encoder (or, on the user's word, draw random weights), set token weights, warm up the embedding table,
train with the contrastive loss. Both trainings are the pipeline's one loop, so both resume exactly.
"""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neobert.config.contrastive import ContrastiveConfig, ContrastiveTrainerConfig
from neobert.config.runtime import RuntimeConfig
from neobert.contrastive.batching import Schedule
from neobert.contrastive.evaluate import make_evaluate
from neobert.contrastive.loss import MultipleNegativesRankingLoss
from neobert.contrastive.objective import ContrastiveModel
from neobert.contrastive.pairs import Pairs
from neobert.contrastive.source import MULTIPLE, PairSource
from neobert.contrastive.warmup import BagOfEmbeddings, inverse_document_frequencies, settle
from neobert.errors import PipelineError
from neobert.model.embedding import EmbeddingModel
from neobert.model.heads import MaskedLM
from neobert.model.ngpt import normalize_weights
from neobert.model.storage import EmbeddingInfo, ModelInfo, load_model, read_info, save_model
from neobert.training.trainer import TrainResult, train

log = logging.getLogger(__name__)


@dataclass
class Start:
    """The model that fine-tuning starts from, and where its tokenizer lies."""

    model: MaskedLM
    embedder: EmbeddingModel
    info: ModelInfo
    tokenizer_dir: Path

    def state(self) -> dict[str, Tensor]:
        """What a model directory holds: encoder, decoder, token weights."""
        return {**self.model.state_dict(), **self.embedder.extra_state()}

    def save(self, directory: Path, objective_state: Mapping[str, Tensor]) -> None:
        """Write a model directory from a contrastive objective's state."""
        state = {k: v for k, v in self.model.state_dict().items() if not k.startswith("encoder.")}
        for key, value in objective_state.items():
            state[key.removeprefix("embedder.")] = value
        save_model(directory, state, self.info, self.tokenizer_dir)


def start_from(directory: Path, pairs: Pairs, config: ContrastiveConfig, seed: int) -> Start:
    """The encoder of the model directory, or random weights of its architecture where the config allows them.

    Raises:
        PipelineError: the weights do not match, key by key; the pairs were made with another tokenizer or are longer
            than the model reads.
    """
    info = read_info(directory)
    manifest = pairs.manifest
    if manifest["tokenizer_sha256"] != info.tokenizer_sha256:
        raise PipelineError(f"{directory} and data/pairs have different tokenizers; run `dvc repro`")
    for key in ("max_query_length", "max_document_length"):
        if manifest[key] > info.max_length:
            raise PipelineError(
                f"contrastive_data.{key} ({manifest[key]}) is more than {directory} reads ({info.max_length} tokens)"
            )
    torch.manual_seed(seed)
    if config.allow_random_weights:
        log.warning("contrastive.allow_random_weights: starting from RANDOM weights, not from %s", directory)
        model = MaskedLM(info.model, info.vocab_size, info.pad_token_id)
    else:
        model, info, _ = load_model(directory)
    embedder = EmbeddingModel(model.encoder, config.pooling, config.normalize, config.token_weights != "none")
    if config.token_weights == "idf":
        embedder.set_token_weights(inverse_document_frequencies(pairs, info.vocab_size))
    embedding = EmbeddingInfo(
        pooling=config.pooling,
        normalize=config.normalize,
        prompts={name: text for name, text in manifest["prompts"].items() if text},
        token_weights=config.token_weights != "none",
    )
    return Start(model, embedder, dataclasses.replace(info, embedding=embedding), directory / "tokenizer")


@dataclass(frozen=True)
class Finetuned:
    """A finished fine-tuning: its result, the model to save, and the warm-up's result if there was one."""

    result: TrainResult
    warmup: TrainResult | None
    start: Start


def finetune(
    config: ContrastiveConfig,
    pairs_dir: Path,
    pretrained: Path,
    *,
    runtime: RuntimeConfig,
    seed: int,
    scratch: Path,
    world: int,
) -> Finetuned:
    """Train the embedding model; ``scratch`` keeps what a resumed run needs.

    Raises:
        PipelineError: see ``start_from`` and ``neobert.training.trainer.train``.
    """
    pairs = Pairs(pairs_dir, "train")
    start = start_from(pretrained, pairs, config, seed)
    evaluate = None
    validation = Pairs(pairs_dir, "validation")
    if validation.rows:
        evaluate = make_evaluate(
            validation,
            config.eval_pairs,
            pad_token_id=start.info.pad_token_id,
            max_negatives=config.max_negatives,
        )
    # An nGPT's weights live on the unit sphere.
    constraint = partial(normalize_weights, start.model) if start.info.model.ngpt else None
    loss = MultipleNegativesRankingLoss(config.scale, config.symmetric, config.false_negative_margin)
    shared: dict[str, Any] = {"seed": seed, "evaluate": evaluate}

    def source(trainer: ContrastiveTrainerConfig, mini_batch_size: int | None, salt: int) -> PairSource:
        schedule = Schedule(pairs, trainer.global_batch_size, config.batch_sizes, config.sampling_alpha, seed + salt)
        return PairSource(
            pairs,
            schedule,
            pad_token_id=start.info.pad_token_id,
            max_negatives=config.max_negatives,
            mini_batch_size=mini_batch_size,
            gather=config.gather_across_devices,
            multiple=MULTIPLE if torch.cuda.is_available() else 1,
        )

    warmed = None
    if config.embedding_warmup is not None:
        warmup = config.embedding_warmup
        bag = ContrastiveModel(BagOfEmbeddings(start.embedder), loss, constraint)
        # A step or path to resume from means the main training's checkpoints, never the warm-up's.
        resume = False if runtime.resume_from_checkpoint is False else "auto"
        warmed = train(
            bag,
            source(warmup.trainer, None, salt=1),
            trainer=warmup.trainer.loop(pairs.rows, world),
            optimizer=warmup.optimizer,
            scheduler=warmup.scheduler,
            runtime=dataclasses.replace(runtime, resume_from_checkpoint=resume),
            scratch=scratch / "embedding_warmup",
            stage="embedding_warmup",
            **shared,
        )
        _adopt(start.embedder, warmed, warmup.rms)
    objective = ContrastiveModel(start.embedder, loss, constraint)
    result = train(
        objective,
        source(config.trainer, config.mini_batch_size, salt=0),
        trainer=config.trainer.loop(pairs.rows, world),
        optimizer=config.optimizer,
        scheduler=config.scheduler,
        runtime=runtime,
        scratch=scratch,
        stage="contrastive_finetune",
        save_model=start.save,
        **shared,
    )
    return Finetuned(result, warmed, start)


def _adopt(embedder: EmbeddingModel, warmed: TrainResult, rms: float) -> None:
    """Put the warm-up's final state (which a resumed run read from a checkpoint) into the model."""
    embedder.cpu()  # the warm-up moved only what it trained to its device
    with torch.no_grad():
        embedder.encoder.embeddings.weight.copy_(warmed.state_dict["embedder.embeddings.weight"])
        if embedder.token_weights is not None:
            embedder.token_weights.copy_(warmed.state_dict["embedder.token_weights"])
    settle(embedder, rms)
