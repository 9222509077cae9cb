"""Fine-tuning end to end on a tiny world: it learns, resumes exactly, saves what it trained, and refuses bad starts."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from neobert.config.contrastive import ContrastiveConfig, ContrastiveTrainerConfig, EmbeddingWarmupConfig
from neobert.config.contrastive_data import ContrastiveDataConfig, PairSource
from neobert.config.optimizer import OptimizerConfig
from neobert.config.runtime import RuntimeConfig
from neobert.config.scheduler import SchedulerConfig
from neobert.config.schema import parse
from neobert.contrastive import finetune as module
from neobert.contrastive.evaluate import KeepBest
from neobert.contrastive.finetune import Places, finetune
from neobert.contrastive.pairs import Pairs
from neobert.contrastive.preprocess import preprocess
from neobert.errors import PipelineError
from neobert.io import write_json
from neobert.model.storage import load_embedding_model, load_model
from neobert.training.trainer import TrainResult

from .conftest import save_pretrained

RUNTIME = RuntimeConfig(save_steps=4, logging_steps=2)


def places(world: Path, scratch: Path, model: Path | None = None) -> Places:
    return Places(world / "pairs", model or world / "model", world / "tokenizer", world / "tokens", scratch)


def config(steps: int = 8, warmup: bool = True, **changes) -> ContrastiveConfig:
    trainer = ContrastiveTrainerConfig(global_batch_size=16, max_steps=steps, num_train_epochs=None, eval_steps=4)
    warm = EmbeddingWarmupConfig(trainer=trainer, optimizer=OptimizerConfig(lr=2e-2, weight_decay=0.0))
    changes = {"load_best_model_at_end": False} | changes
    return ContrastiveConfig(
        token_weights="idf",
        trainer=trainer,
        optimizer=OptimizerConfig(lr=2e-3, weight_decay=0.01),
        scheduler=SchedulerConfig(name="constant"),
        embedding_warmup=warm if warmup else None,
        **changes,
    )


def run(world: Path, scratch: Path, cfg: ContrastiveConfig, seed: int = 1, runtime: RuntimeConfig = RUNTIME):
    return finetune(cfg, places(world, scratch), runtime=runtime, seed=seed, world=1)


def test_it_learns_and_saves_what_it_trained(world, tmp_path):
    done = run(world, tmp_path / "run", config(60))
    before, after = done.warmup.history[0]["loss"], done.result.history[-1]
    losses = [row["loss"] for row in done.result.history if "loss" in row]
    assert losses[-1] < before * 0.8
    assert {"eval_loss", "eval_accuracy", "eval_recall_at_10", "eval_mrr_at_10"} <= {
        key for row in done.result.history for key in row
    }, after
    done.start.save(tmp_path / "model", done.result.state_dict)
    embedder, info = load_embedding_model(tmp_path / "model")
    assert info.embedding is not None
    assert info.embedding.token_weights
    start = done.start.embedder.eval()
    ids, positions = torch.tensor([2, 50, 60, 3]), torch.arange(4)
    from neobert.model.batch import FlatBatch

    batch = FlatBatch(ids, positions, torch.tensor([0, 4], dtype=torch.int32), 4)
    with torch.no_grad():
        assert torch.equal(embedder(batch, 1), start(batch, 1))
    trained, original = load_model(tmp_path / "model")[0], load_model(world / "model")[0]
    assert not torch.equal(trained.encoder.layers[0].mlp_norm.weight, original.encoder.layers[0].mlp_norm.weight)


def test_muonclip_fine_tunes(world, tmp_path):
    optimizer = OptimizerConfig(name="muonclip", lr=2e-3, weight_decay=0.01)
    done = run(world, tmp_path, dataclasses.replace(config(12, warmup=False), optimizer=optimizer))
    losses = [row["loss"] for row in done.result.history if "loss" in row]
    assert losses[-1] < losses[0]


def test_resume_is_exact(world, tmp_path):
    whole = run(world, tmp_path / "whole", config(8)).result.state_dict
    interrupted = tmp_path / "interrupted"
    run(world, interrupted, config(8))
    shutil.rmtree(interrupted / "checkpoints" / "8")  # as if it had stopped at step 4
    shutil.rmtree(interrupted / "embedding_warmup" / "checkpoints" / "8")
    resumed = run(world, interrupted, config(8)).result.state_dict
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_warmup_matters_and_is_taken_over(world, tmp_path):
    done = run(world, tmp_path / "run", config(1))
    cold = run(world, tmp_path / "cold", config(1, warmup=False))
    key = "embedder.encoder.embeddings.weight"
    assert not torch.equal(done.result.state_dict[key], cold.result.state_dict[key])
    assert cold.warmup is None


def test_grad_cache_trains_the_same(world, tmp_path):
    whole = run(world, tmp_path / "a", config(3, warmup=False)).result.state_dict
    chunked = run(world, tmp_path / "b", config(3, warmup=False, mini_batch_size=7)).result.state_dict
    for key, value in whole.items():
        assert torch.allclose(chunked[key], value, atol=1e-3), key


def test_a_wrong_start_is_refused(world, tmp_path):
    def refused(match: str, root: Path, cfg: ContrastiveConfig) -> None:
        with pytest.raises(PipelineError, match=match):
            finetune(cfg, places(world, tmp_path / "never", root), runtime=RUNTIME, seed=0, world=1)

    root = tmp_path / "model"
    save_pretrained(root, world / "tokenizer")
    state = load_file(root / "model.safetensors")
    dropped = {k: v for k, v in state.items() if "layers.1.mlp" not in k}
    save_file(dropped, root / "model.safetensors")
    refused(r"missing encoder\.layers\.1\.mlp", root, config())
    retrained = shutil.copytree(world / "tokenizer", tmp_path / "retrained")
    text = (retrained / "tokenizer.json").read_text()
    for old, new, match in (("{", "{ ", "different tokenizers; run"), ("w17", "v17", "has another vocabulary")):
        (retrained / "tokenizer.json").write_text(text.replace(old, new))
        elsewhere = dataclasses.replace(places(world, tmp_path / "never"), tokenizer=retrained)
        with pytest.raises(PipelineError, match=match):
            finetune(config(), elsewhere, runtime=RUNTIME, seed=0, world=1)


def test_random_start_follows_the_seed(world):
    pairs = module.Pairs(world / "pairs", "train")
    cfg = config(1, allow_random_weights=True)
    starts = [module.start_from(world / "model", world / "tokenizer", pairs, cfg, seed).state() for seed in (1, 1, 2)]
    key = "encoder.layers.0.attention.qkv.weight"
    assert torch.equal(starts[0][key], starts[1][key])
    assert not torch.equal(starts[0][key], starts[2][key])
    loaded = module.start_from(
        world / "model", world / "tokenizer", pairs, dataclasses.replace(cfg, allow_random_weights=False), 1
    ).state()
    assert torch.equal(loaded[key], load_model(world / "model")[0].state_dict()[key])


def test_the_best_evaluation_is_kept(world, tmp_path):
    ruinous = dataclasses.replace(
        config(12, load_best_model_at_end=True, metric_for_best_model="mrr_at_10"),
        optimizer=OptimizerConfig(lr=3.0, weight_decay=0.0),
    )
    done = run(world, tmp_path / "run", ruinous)
    assert done.result.metrics["best_step"] == 0
    rows = {row["step"]: row for row in done.result.history if "eval_mrr_at_10" in row}
    assert set(rows) == {0, 4, 8, 12}
    assert done.result.metrics["eval_mrr_at_10"] == rows[0]["eval_mrr_at_10"] > rows[12]["eval_mrr_at_10"]
    again = run(world, tmp_path / "run", ruinous)  # finished: nothing is trained, the best is found again
    key = "embedder.encoder.layers.0.mlp_norm.weight"
    assert torch.equal(again.result.state_dict[key], done.result.state_dict[key])
    assert torch.equal(done.result.state_dict[key], load_model(world / "model")[0].state_dict()[key.split(".", 1)[1]])


def test_a_tie_is_the_trained_models(tmp_path):
    figures = iter([0.0, 0.0, 0.0, 0.5])
    best = KeepBest(lambda objective, step: {"loss": next(figures)}, "loss", tmp_path, {})
    model = torch.nn.Linear(1, 1)
    for step in (0, 4, 8, 12):
        best(model, step)
        model.weight.data += 1.0
    kept = best.result(TrainResult([], {}, {}))
    assert kept.metrics["best_step"] == 4
    assert kept.state_dict["weight"].item() == pytest.approx(model.weight.item() - 3.0)
    best.evaluate = lambda objective, step: {"loss": 0.0}
    best(model, 0)  # a run that starts anew beside it meets the start's figure again
    assert best.result(TrainResult([], {}, {})).metrics["best_step"] == 4


@pytest.mark.parametrize(
    ("held_out", "metric", "needed"), [(0, "loss", 2), (1, "loss", 2), (1, "mrr_at_10", 2), (10, "recall_at_10", 11)]
)
def test_too_few_held_out_pairs_to_tell_models_apart(world, tmp_path, held_out, metric, needed):
    elsewhere = dataclasses.replace(places(world, tmp_path / "never"), pairs=hold_out(world, tmp_path, held_out))
    cfg = config(4, load_best_model_at_end=True, metric_for_best_model=metric)
    message = (
        rf"contrastive\.load_best_model_at_end: .*{metric}.*at least {needed} .*\({held_out} .*"
        r"contrastive_data\.validation_fraction"
    )
    with pytest.raises(PipelineError, match=message):
        finetune(cfg, elsewhere, runtime=RUNTIME, seed=0, world=1)
    assert not (tmp_path / "never").exists()  # before anything was trained, the warm-up included
    last = dataclasses.replace(cfg, load_best_model_at_end=False, embedding_warmup=None)
    assert "best_step" not in finetune(last, elsewhere, runtime=RUNTIME, seed=0, world=1).result.metrics


def test_few_evaluated_pairs_do_not_tell_models_apart_either(world, tmp_path):
    with pytest.raises(PipelineError, match=r"contrastive\.eval_pairs"):
        run(world, tmp_path, config(4, load_best_model_at_end=True, eval_pairs=1))


def hold_out(world: Path, root: Path, count: int) -> Path:
    """The world's pairs, of which no more than ``count`` are held out."""
    sources = {"big": PairSource(path=str(world / "big.jsonl"), negative="negative", label="query")}
    data = ContrastiveDataConfig(
        sources=sources, decontaminate=[], validation_fraction=0.5 * (count > 0), max_validation_pairs=count,
        max_query_length=16, max_document_length=16,
    )  # fmt: skip
    preprocess(data, world / "tokenizer", root / "pairs", root / "cache")
    assert Pairs(root / "pairs", "validation").rows == count
    return root / "pairs"


def described(scratch: Path, cfg: ContrastiveConfig) -> Path:
    scratch.mkdir()
    parts = {"params": {"contrastive": dataclasses.asdict(cfg), "seed": 1}}
    write_json(scratch / "run.json", {"stage": "contrastive_finetune", "parts": parts})
    return scratch


def overshooting(steps: int, lr: float = 3.0) -> ContrastiveConfig:
    """Its last model is not its best."""
    cfg = config(steps, warmup=False, load_best_model_at_end=True)
    return dataclasses.replace(cfg, optimizer=OptimizerConfig(lr=lr, weight_decay=0.0))


def test_a_prolonged_run_keeps_the_best_of_the_shorter_one(world, tmp_path):
    straight = run(world, tmp_path / "straight", overshooting(12)).result
    run(world, described(tmp_path / "contrastive_finetune-a", overshooting(8)), overshooting(8))
    longer = described(tmp_path / "contrastive_finetune-b", overshooting(12))
    prolonged = run(world, longer, overshooting(12)).result
    assert prolonged.history == straight.history
    assert prolonged.metrics == straight.metrics
    assert straight.metrics["best_step"] <= 8
    assert all(torch.equal(straight.state_dict[key], value) for key, value in prolonged.state_dict.items())


def test_the_best_of_a_course_that_was_left_does_not_win(world, tmp_path):
    """Each course's own best does: the other run's until the checkpoint, then what follows it."""
    good, bad = overshooting(12, lr=2e-3), overshooting(12)
    other, mine = tmp_path / "other", tmp_path / "mine"
    run(world, other, bad, runtime=dataclasses.replace(RUNTIME, save_total_limit=9))
    first = run(world, mine, good).result
    named = dataclasses.replace(RUNTIME, resume_from_checkpoint=str(other / "checkpoints" / "4"))
    second = run(world, mine, good, runtime=named).result
    assert first.metrics["best_step"] == 12
    rows = {row["step"]: row["eval_loss"] for row in second.history if "eval_loss" in row}
    best = min(rows, key=rows.get)
    assert (second.metrics["best_step"], second.metrics["eval_loss"]) == (best, rows[best])
    assert second.metrics["eval_loss"] > first.metrics["eval_loss"]


def test_a_best_model_that_was_judged_otherwise_does_not_count(tmp_path, caplog):
    before = KeepBest(lambda objective, step: {"loss": 0.1, "mrr_at_10": 0.2}, "loss", tmp_path, {"scale": 20.0})
    before(torch.nn.Linear(1, 1), 4)
    after = KeepBest(lambda objective, step: {"loss": 0.5, "mrr_at_10": 0.1}, "mrr_at_10", tmp_path, {"scale": 10.0})
    assert after.result(last := TrainResult([], {}, {})) is last
    assert "was chosen under other metric, scale" in caplog.text
    after(torch.nn.Linear(1, 1), 8)
    assert after.result(last).metrics["best_step"] == 8


def test_without_a_figure_to_compare_the_last_model_stays(tmp_path):
    best = KeepBest(lambda objective, step: {"loss": float("nan")}, "loss", tmp_path, {})
    best(torch.nn.Linear(1, 1), 1)
    last = TrainResult([], {"eval_loss": float("nan")}, {"w": torch.ones(1)})
    assert best.result(last) is last


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "supcon"},
        {"matryoshka_dims": [8, 16]},
        {"pooling": "cls", "embedding_warmup": None},
        {"pooling": "max", "embedding_warmup": None, "token_weights": "none"},
        {"pretraining_prob": 0.5, "dropout": 0.1},
        {"symmetric": True, "false_negative_margin": 0.1, "batch_sizes": {"small": 4}},
    ],
)
def test_every_variant_trains_and_resumes(world, tmp_path, changes):
    cfg = dataclasses.replace(config(6, warmup="embedding_warmup" not in changes), **changes)
    whole = run(world, tmp_path / "whole", cfg)
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in whole.result.history if "loss" in row)
    interrupted = tmp_path / "interrupted"
    run(world, interrupted, cfg)
    shutil.rmtree(interrupted / "checkpoints" / "6")
    resumed = run(world, interrupted, cfg).result.state_dict
    assert all(torch.equal(value, resumed[key]) for key, value in whole.result.state_dict.items())


def test_unusable_settings_are_refused(world, tmp_path):
    with pytest.raises(PipelineError, match=r"matryoshka_dims.*width \(32\)"):
        run(world, tmp_path / "a", config(matryoshka_dims=[64]))
    with pytest.raises(PipelineError, match=r"batch_sizes: 'other' is not a source; they are big, small"):
        run(world, tmp_path / "b", config(batch_sizes={"other": 4}))
    shutil.copytree(world / "pairs", tmp_path / "pairs")
    manifest = tmp_path / "pairs" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"labelled": ["big"]}))
    unlabelled = dataclasses.replace(places(world, tmp_path / "c"), pairs=tmp_path / "pairs")
    with pytest.raises(
        PipelineError, match=r"contrastive\.loss: supcon needs labels, and small of the pairs have none"
    ):
        finetune(config(loss="supcon"), unlabelled, runtime=RUNTIME, seed=0, world=1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"token_weights": "none"}, "token_weights is none; take ones or idf"),
        ({"token_weights": "idf", "pooling": "cls"}, "does not fit pooling cls"),
    ],
)
def test_a_warm_up_that_cannot_be_taken_over_is_refused(value, message):
    problems: list[str] = []
    parse(ContrastiveConfig, value | {"embedding_warmup": {}}, "contrastive", problems)
    assert len(problems) == 1
    assert problems[0].startswith("contrastive.embedding_warmup")
    assert message in problems[0]


@pytest.mark.parametrize("world_size", [3, 32])
def test_a_batch_that_does_not_divide_over_the_ranks_is_refused(world_size):
    with pytest.raises(
        PipelineError, match=rf"contrastive\.trainer\.global_batch_size \(16\).* ranks \({world_size}\)"
    ):
        ContrastiveTrainerConfig(global_batch_size=16).loop(pairs=100, world=world_size)


def test_repeatable_kernels_are_chosen_before_a_warm_up_without_them(world, tmp_path, monkeypatch):
    """cuBLAS reads its setting when it starts: at the first product, which is the warm-up's."""

    class Entered(Exception):
        pass

    def enter(*args, **options):
        raise Entered(options["stage"], os.environ.get("CUBLAS_WORKSPACE_CONFIG"))

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(module, "train", enter)
    cfg = config()
    cfg = dataclasses.replace(cfg, trainer=dataclasses.replace(cfg.trainer, deterministic=True))
    with pytest.raises(Entered) as error:
        run(world, tmp_path, cfg)
    assert error.value.args == ("embedding_warmup", ":4096:8")
