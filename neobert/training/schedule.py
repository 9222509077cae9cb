"""Learning rate as a pure function of the step: nothing to save, nothing to step, the same on every rank.

`multiplier(step, ...)` is what the peak rate is multiplied by at optimizer step `step` (the first is 0). With
warmup w: (step + 1) / (w + 1) below w, so that no step is wasted at 0 and the peak is first reached at step w.
Sources: cosine, Loshchilov and Hutter (2017); WSD, Hu et al., MiniCPM (2024); 1-sqrt, Hagele et al. (2024).
"""

from __future__ import annotations

import math

from neobert.config.scheduler import SchedulerConfig


def warmup_steps(config: SchedulerConfig, max_steps: int) -> int:
    """Steps of warmup."""
    if config.warmup_percent is None:
        return config.warmup_steps
    return round(max_steps * config.warmup_percent / 100)


def decay_steps(config: SchedulerConfig, max_steps: int) -> int:
    """Steps of decay: given, or all that follow the warmup."""
    if config.decay_percent is not None:
        return max(1, round(max_steps * config.decay_percent / 100))
    return config.decay_steps or max(1, max_steps - warmup_steps(config, max_steps))


def multiplier(step: int, config: SchedulerConfig, max_steps: int) -> float:
    """Learning rate at optimizer step `step` (from 0) over the peak."""
    warmup = warmup_steps(config, max_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.name == "constant":
        return 1.0
    if config.name == "inverse_sqrt":
        # The square root's own scale is the warmup, as in Vaswani et al. (2017); without one it is 1 step.
        return math.sqrt(max(warmup, 1) / max(step, 1)) if step > max(warmup, 1) else 1.0
    length = decay_steps(config, max_steps)
    start = warmup
    if config.name == "wsd":
        # The run's last steps; where the warmup reaches into them those that it leaves, so that the decay always ends.
        start = max(warmup, max_steps - length)
        length = max(max_steps - start, 1)
    done = min(max(step - start, 0) / length, 1.0)
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * _remaining(done, config)


def _remaining(done: float, config: SchedulerConfig) -> float:
    """1 at the decay's start, 0 at its end."""
    if config.name == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if config.name == "wsd" and config.decay_shape == "1-sqrt":
        return 1 - math.sqrt(done)
    return 1 - done


def extends(config: SchedulerConfig, step: int, old_max_steps: int, new_max_steps: int) -> bool:
    """Whether a run at `step` may go on to `new_max_steps`: every rate so far must have been what it would be."""
    return all(
        multiplier(s, config, old_max_steps) == multiplier(s, config, new_max_steps)
        for s in (*range(0, step, max(1, step // 1000)), max(step - 1, 0))
    )
