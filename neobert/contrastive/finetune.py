"""Contrastive fine-tuning: a pretrained encoder becomes an embedding model.

Steps: load the encoder (or, on the user's word, draw random weights), set token weights, warm up the embedding table,
train with the contrastive loss. Both trainings are the pipeline's one loop, so both resume exactly.
"""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from neobert.config.contrastive import ContrastiveConfig, ContrastiveTrainerConfig, EmbeddingWarmupConfig
from neobert.config.runtime import RuntimeConfig
from neobert.contrastive.batching import Schedule
from neobert.contrastive.evaluate import Evaluate, KeepBest, make_evaluate
from neobert.contrastive.loss import MatryoshkaLoss, MultipleNegativesRankingLoss, SupConLoss
from neobert.contrastive.objective import ContrastiveModel
from neobert.contrastive.pairs import Pairs
from neobert.contrastive.simcse import PretrainingTexts
from neobert.contrastive.source import MULTIPLE, PairSource
from neobert.contrastive.warmup import BagOfEmbeddings, inverse_document_frequencies, settle
from neobert.errors import PipelineError
from neobert.io import fingerprint
from neobert.model.embedding import EmbeddingModel
from neobert.model.heads import MaskedLM
from neobert.model.ngpt import normalize_weights
from neobert.model.pretrained import open_pretrained
from neobert.model.storage import EmbeddingInfo, ModelInfo, save_model
from neobert.training.launch import is_main_process
from neobert.training.resume import BEST
from neobert.training.trainer import TrainResult, set_determinism, train

log = logging.getLogger(__name__)
JUDGED = ("eval_pairs", "loss", "matryoshka_dims", "scale", "symmetric", "false_negative_margin", "max_negatives")
"""Keys of ``contrastive`` that decide a model's held-out figures; figures under other values do not compare."""


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


def start_from(directory: Path, tokenizer_dir: Path, pairs: Pairs, config: ContrastiveConfig, seed: int) -> Start:
    """The model of ``directory``, or random weights of its architecture where the config allows them.

    Raises:
        PipelineError: the directory cannot be used (see ``open_pretrained``); the pairs were made with another
            tokenizer or are longer than the model reads.
    """
    model, info = open_pretrained("contrastive.pretrained_from", directory, tokenizer_dir)
    manifest = pairs.manifest
    if manifest["tokenizer_sha256"] != info.tokenizer_sha256:
        raise PipelineError(f"{tokenizer_dir} and data/pairs have different tokenizers; run `dvc repro`")
    for key in ("max_query_length", "max_document_length"):
        if manifest[key] > info.max_length:
            raise PipelineError(
                f"contrastive_data.{key} ({manifest[key]}) is more than {directory} reads ({info.max_length} tokens)"
            )
    if config.allow_random_weights:
        log.warning("contrastive.allow_random_weights: starting from RANDOM weights, not from %s", directory)
        torch.manual_seed(seed)
        model = MaskedLM(info.model, info.vocab_size, info.pad_token_id)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = config.dropout
    embedder = EmbeddingModel(model.encoder, config.pooling, config.normalize, config.token_weights != "none")
    if config.token_weights == "idf":
        embedder.set_token_weights(inverse_document_frequencies(pairs, info.vocab_size))
    embedding = EmbeddingInfo(
        pooling=config.pooling,
        normalize=config.normalize,
        prompts={name: text for name, text in manifest["prompts"].items() if text},
        token_weights=config.token_weights != "none",
    )
    return Start(model, embedder, dataclasses.replace(info, embedding=embedding), tokenizer_dir)


@dataclass(frozen=True)
class Finetuned:
    """A finished fine-tuning: its result, the model to save, and the warm-up's result if there was one."""

    result: TrainResult
    warmup: TrainResult | None
    start: Start


@dataclass(frozen=True)
class Places:
    """Where fine-tuning reads and keeps things."""

    pairs: Path
    pretrained: Path
    tokenizer: Path
    tokens: Path
    scratch: Path


def make_loss(config: ContrastiveConfig, width: int) -> nn.Module:
    """The loss that the config names.

    Raises:
        PipelineError: a Matryoshka width is more than the model has.
    """
    if config.loss == "supcon":
        loss: nn.Module = SupConLoss(config.scale)
    else:
        loss = MultipleNegativesRankingLoss(config.scale, config.symmetric, config.false_negative_margin)
    if not config.matryoshka_dims:
        return loss
    if max(config.matryoshka_dims) > width:
        raise PipelineError(f"contrastive.matryoshka_dims: {config.matryoshka_dims} exceed the model's width ({width})")
    return MatryoshkaLoss(loss, {*config.matryoshka_dims, width})


def make_source(
    config: ContrastiveConfig,
    trainer: ContrastiveTrainerConfig,
    pairs: Pairs,
    info: ModelInfo,
    *,
    seed: int,
    simcse: PretrainingTexts | None = None,
    mini_batch_size: int | None = None,
) -> PairSource:
    """Batches of one training."""
    schedule = Schedule(
        pairs,
        trainer.global_batch_size,
        config.batch_sizes,
        config.sampling_alpha,
        seed,
        by_class=config.loss == "supcon",
    )
    return PairSource(
        pairs,
        schedule,
        pad_token_id=info.pad_token_id,
        max_negatives=config.max_negatives,
        mini_batch_size=mini_batch_size,
        gather=config.gather_across_devices,
        multiple=MULTIPLE if torch.cuda.is_available() else 1,
        simcse=simcse,
    )


def finetune(config: ContrastiveConfig, places: Places, *, runtime: RuntimeConfig, seed: int, world: int) -> Finetuned:
    """Train the embedding model; the scratch keeps what a resumed run needs.

    Raises:
        PipelineError: see ``start_from`` and ``neobert.training.trainer.train``.
    """
    set_determinism(config.trainer.deterministic)  # here too: a warm-up without it must not start cuBLAS first
    pairs, validation = Pairs(places.pairs, "train"), Pairs(places.pairs, "validation")
    _check_fit(config, pairs)
    _check_held_out(config, validation)
    start = start_from(places.pretrained, places.tokenizer, pairs, config, seed)
    loss = make_loss(config, start.info.model.hidden_size)
    evaluate = None
    if validation.rows:
        sizes = {"pad_token_id": start.info.pad_token_id, "max_negatives": config.max_negatives}
        evaluate = make_evaluate(validation, config.eval_pairs, **sizes)
    warmed = None
    if config.embedding_warmup is not None:
        warmed = _warm_up(config, config.embedding_warmup, pairs, start, loss, evaluate, runtime, seed, places, world)
    # An nGPT's weights live on the unit sphere.
    constraint = partial(normalize_weights, start.model) if start.info.model.ngpt else None
    objective = ContrastiveModel(start.embedder, loss, constraint)
    best = None
    if config.load_best_model_at_end and evaluate is not None:
        judged = {name: getattr(config, name) for name in JUDGED} | {"pairs": fingerprint(validation.manifest)}
        best = KeepBest(evaluate, config.metric_for_best_model, places.scratch / BEST, judged)
    result = train(
        objective,
        make_source(
            config,
            config.trainer,
            pairs,
            start.info,
            seed=seed,
            simcse=_simcse(config, pairs, start.info, places.tokens, seed),
            mini_batch_size=config.mini_batch_size,
        ),
        trainer=config.trainer.loop(pairs.rows, world),
        optimizer=config.optimizer,
        scheduler=config.scheduler,
        runtime=runtime,
        seed=seed,
        scratch=places.scratch,
        stage="contrastive_finetune",
        evaluate=best or evaluate,
        evaluate_first=best is not None,
        save_model=start.save,
    )
    if best is not None and is_main_process():
        result = best.result(result)
    return Finetuned(result, warmed, start)


def _check_fit(config: ContrastiveConfig, pairs: Pairs) -> None:
    known = set(pairs.sources)
    for name in config.batch_sizes:
        if name not in known:
            raise PipelineError(
                f"contrastive.batch_sizes: {name!r} is not a source; they are {', '.join(sorted(known))}"
            )
    unlabelled = known - set(pairs.manifest["labelled"])
    if config.loss == "supcon" and unlabelled:
        raise PipelineError(
            f"contrastive.loss: supcon needs labels, and {', '.join(sorted(unlabelled))} of the pairs have none; name "
            "their column in contrastive_data.sources.<name>.label, or use MultipleNegativesRankingLoss"
        )


def _check_held_out(config: ContrastiveConfig, validation: Pairs) -> None:
    """A single pair's loss is always 0, and recall@10 among 10 documents always 1, whatever the model."""
    needed = 11 if config.metric_for_best_model == "recall_at_10" else 2
    if config.load_best_model_at_end and min(validation.rows, config.eval_pairs) < needed:
        raise PipelineError(
            f"contrastive.load_best_model_at_end: {config.metric_for_best_model} tells models apart among at least "
            f"{needed} held-out pairs ({validation.rows} are held out, contrastive.eval_pairs is "
            f"{config.eval_pairs}); raise contrastive_data.validation_fraction, or make it false to keep the last model"
        )


def _simcse(
    config: ContrastiveConfig, pairs: Pairs, info: ModelInfo, tokens: Path, seed: int
) -> PretrainingTexts | None:
    if config.pretraining_prob == 0:
        return None
    return PretrainingTexts(
        tokens,
        cls_token_id=info.cls_token_id,
        sep_token_id=info.sep_token_id,
        max_length=pairs.manifest["max_document_length"],
        prob=config.pretraining_prob,
        seed=seed,
        tokenizer_sha256=info.tokenizer_sha256,
    )


def _warm_up(
    config: ContrastiveConfig,
    warmup: EmbeddingWarmupConfig,
    pairs: Pairs,
    start: Start,
    loss: nn.Module,
    evaluate: Evaluate | None,
    runtime: RuntimeConfig,
    seed: int,
    places: Places,
    world: int,
) -> TrainResult:
    """Train a bag of embeddings and put it into ``start``."""
    bag = BagOfEmbeddings(start.embedder)
    constraint = partial(normalize_weights, bag) if start.info.model.ngpt else None
    # A step or path to resume from means the main training's checkpoints, never the warm-up's.
    resume = False if runtime.resume_from_checkpoint is False else "auto"
    warmed = train(
        ContrastiveModel(bag, loss, constraint),
        make_source(config, warmup.trainer, pairs, start.info, seed=seed + 1),
        trainer=warmup.trainer.loop(pairs.rows, world),
        optimizer=warmup.optimizer,
        scheduler=warmup.scheduler,
        runtime=dataclasses.replace(runtime, resume_from_checkpoint=resume),
        seed=seed,
        scratch=places.scratch / "embedding_warmup",
        stage="embedding_warmup",
        evaluate=evaluate,
    )
    embedder, state = start.embedder, warmed.state_dict
    with torch.no_grad():
        embedder.encoder.embeddings.weight.copy_(state["embedder.embeddings.weight"])
        if embedder.token_weights is not None:
            embedder.token_weights.copy_(state["embedder.token_weights"])
    settle(embedder, warmup.rms)
    return warmed
