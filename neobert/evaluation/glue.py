"""Fine-tune a model on GLUE tasks and score the best checkpoint of each.

Algorithm: encoder, pooled, a dense layer and a classifier (``neobert.model.heads.SequenceClassifier``), all trained;
batches are flat streams without padding; validation every ``eval_steps`` or epoch; the best state by the chosen metric
is kept in memory and is what is scored; ``early_stopping`` validations without a better one end the run. With
``transfer_from_task`` the encoder of that task's best checkpoint is where the others start. Each of ``num_seeds`` runs
draws its own classifier, order and dropout. One device: a GLUE task is small.
Cost: ``num_train_epochs`` passes over the training set, and the validations.
"""

import copy
import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer

from neobert.config.glue import GlueConfig
from neobert.errors import PipelineError
from neobert.evaluation.glue_data import TASKS, GlueTask, Labelled, load_task, metrics
from neobert.model.batch import FlatBatch, flatten
from neobert.model.encoder import Encoder
from neobert.model.heads import MaskedLM, SequenceClassifier
from neobert.model.init import initialise
from neobert.model.pretrained import open_pretrained, own_tokenizer
from neobert.model.storage import ModelInfo
from neobert.progress import progress
from neobert.training.optimizer import build_optimizer
from neobert.training.schedule import multiplier

log = logging.getLogger(__name__)


@dataclass
class Run:
    """One fine-tuning: its best validation, and all of them."""

    task: str
    seed: int
    best: dict[str, float]
    best_step: int
    history: list[dict[str, float]]
    encoder: Encoder


def run_glue(config: GlueConfig, seed: int) -> list[Run]:
    """Fine-tune on every task of ``config``, ``num_seeds`` times.

    Raises:
        PipelineError: the model directory or the examples of a task cannot be read (before any training), or a
            training diverged.
    """
    path = Path(config.pretrained_model_path)
    model, info = open_pretrained("glue.pretrained_model_path", path, own_tokenizer(path))
    tokenizer = AutoTokenizer.from_pretrained(own_tokenizer(path), trust_remote_code=False)
    length = min(config.max_seq_length, info.max_length)
    source = config.transfer_from_task
    names = [name for name in config.task_names() if name != source]
    data = {
        name: load_task(TASKS[name], config.dataset_path, tokenizer, length)
        for name in dict.fromkeys([*([source] if source else []), *names])
    }
    runs = []
    for run_seed in range(seed, seed + config.num_seeds):
        start = start_encoder(model, info, config, run_seed)
        if source is not None:
            first = fine_tune(start, TASKS[source], data[source], config, run_seed)
            start = first.encoder
            if source in config.task_names():
                runs.append(first)
        runs += [fine_tune(start, TASKS[name], data[name], config, run_seed) for name in names]
    return runs


def start_encoder(model: MaskedLM, info: ModelInfo, config: GlueConfig, seed: int) -> Encoder:
    """Where a fine-tuning starts: the trained encoder, or random weights of its shape."""
    if not config.allow_random_weights:
        return model.encoder
    torch.manual_seed(seed)
    return MaskedLM(info.model, info.vocab_size, info.pad_token_id).encoder


def classifier(start: Encoder, task: GlueTask, config: GlueConfig, seed: int) -> SequenceClassifier:
    """A copy of ``start`` with a fresh classifier."""
    torch.manual_seed(seed)
    model = SequenceClassifier(copy.deepcopy(start), task.num_labels, config.pooling, config.classifier_dropout)
    ranges = dataclasses.replace(start.config, decoder_init_range=config.classifier_init_range)
    for layer in (model.dense, model.classifier):
        initialise(layer, ranges)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def fine_tune(start: Encoder, task: GlueTask, data: dict[str, Labelled], config: GlueConfig, seed: int) -> Run:
    """One fine-tuning from ``start``, which is left as it is; the run holds the encoder of the best checkpoint."""
    trainer, model = config.trainer, classifier(start, task, config, seed)
    optimizer = build_optimizer(model, config.optimizer)
    peaks = [group["lr"] for group in optimizer.param_groups]
    train, size = data["train"], trainer.per_device_train_batch_size
    an_epoch = -(-len(train.ids) // size)
    steps = an_epoch * trainer.num_train_epochs
    every = trainer.eval_steps or an_epoch
    best, worse, history = Best(), 0, []
    metric = trainer.metric_for_best_model or "score"
    with progress(f"glue {task.name}, seed {seed}", total=steps, unit="steps") as bar:
        for step, chosen in enumerate(batches(len(train.ids), size, trainer.num_train_epochs, seed)):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * multiplier(step, config.scheduler, steps)
            loss = update(model, optimizer, train, chosen, config)
            bar.advance()
            done = step + 1
            if done % every and done != steps:
                continue
            if not torch.isfinite(loss):
                raise PipelineError(
                    f"glue {task.name}: the loss is {float(loss)} at step {done}; lower glue.optimizer.lr"
                )
            found = validate(model, task, data, config)
            history.append({"step": done, "loss": float(loss), **found})
            worse = 0 if best.offer(found, found[metric], done, model) else worse + 1
            if trainer.early_stopping and worse >= trainer.early_stopping:
                log.info("glue %s: no better result in %d validations, stopped at step %d", task.name, worse, done)
                break
    if not best.state:
        raise PipelineError(
            f"glue {task.name}: {metric} is {found[metric]} at every validation, so that no checkpoint is the best; "
            "its validation set needs labels that differ, or choose another glue.trainer.metric_for_best_model"
        )
    model.load_state_dict(best.state)
    log.info("glue %s, seed %d: %s at step %d", task.name, seed, best.metrics, best.step)
    return Run(task.name, seed, best.metrics, best.step, history, model.encoder.cpu())


class Best:
    """The best validation so far, and the weights it had."""

    def __init__(self) -> None:
        self.value, self.step = float("-inf"), 0
        self.metrics: dict[str, float] = {}
        self.state: dict[str, torch.Tensor] = {}

    def offer(self, metrics: dict[str, float], value: float, step: int, model: torch.nn.Module) -> bool:
        """Keep this state if it is better; a tie keeps the earlier one."""
        if not value > self.value:
            return False
        self.value, self.metrics, self.step = value, metrics, step
        self.state = {key: tensor.detach().cpu().clone() for key, tensor in model.state_dict().items()}
        return True


def batches(count: int, size: int, epochs: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of each update's examples: every example once an epoch, in a new order."""
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(count)
        for start in range(0, count, size):
            yield order[start : start + size]


def forward(model: SequenceClassifier, ids: list[np.ndarray], config: GlueConfig) -> torch.Tensor:
    """Logits [len(ids), C] in fp32."""
    device = model.classifier.weight.device
    batch: FlatBatch = flatten(ids, model.encoder.pad_token_id).to(device, non_blocking=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.trainer.mixed_precision == "bf16"):
        return model(*batch, num_segments=len(ids)).float()


def update(
    model: SequenceClassifier, optimizer: torch.optim.Optimizer, data: Labelled, chosen: np.ndarray, config: GlueConfig
) -> torch.Tensor:
    """One optimizer step on the examples ``chosen``; the mean loss, on the device."""
    model.train()
    logits = forward(model, [data.ids[i] for i in chosen], config)
    labels = torch.from_numpy(data.labels[chosen]).to(logits.device)
    regression = labels.is_floating_point()
    loss = F.mse_loss(logits.squeeze(-1), labels) if regression else F.cross_entropy(logits, labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if config.trainer.gradient_clipping is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.trainer.gradient_clipping)
    optimizer.step()
    return loss.detach()


@torch.inference_mode()
def predict(model: SequenceClassifier, ids: list[np.ndarray], config: GlueConfig) -> np.ndarray:
    """Classes, or scores of a regression, [N]."""
    model.eval()
    size = config.trainer.per_device_eval_batch_size
    logits = torch.cat([forward(model, ids[i : i + size], config) for i in range(0, len(ids), size)])
    found = logits.squeeze(-1) if logits.shape[1] == 1 else logits.argmax(dim=-1)
    return found.cpu().numpy()


def validate(
    model: SequenceClassifier, task: GlueTask, data: dict[str, Labelled], config: GlueConfig
) -> dict[str, float]:
    """The task's metrics, averaged over its validation sets (and for each of two), and ``score``, their mean."""
    sets = {
        split: metrics(task, predict(model, data[split].ids, config), data[split].labels) for split in task.validation
    }
    names = next(iter(sets.values()))
    found = {name: float(np.mean([values[name] for values in sets.values()])) for name in names}
    found["score"] = float(np.mean(list(found.values())))
    if len(sets) > 1:
        found |= {f"{name}_{s.removeprefix('validation_')}": v[name] for s, v in sets.items() for name in names}
    return found
