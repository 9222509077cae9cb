"""Progress of long steps: a rich bar on a terminal, plain lines with rate and time left elsewhere.

Cost: one clock read an ``advance`` call; a plain line at most every ``PLAIN_SECONDS``.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

log = logging.getLogger(__name__)
PLAIN_SECONDS = 10.0


class Counter(Protocol):
    """What ``progress`` yields."""

    def advance(self, n: float = 1) -> None: ...


class _Bar:
    def __init__(self, bar: Progress, task) -> None:
        self.bar, self.task = bar, task

    def advance(self, n: float = 1) -> None:
        self.bar.advance(self.task, n)


class _Lines:
    """Plain lines for logs and pipes, where a redrawn bar would be noise."""

    def __init__(self, description: str, total: float | None, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done, self.start = 0.0, time.monotonic()
        self.last = self.start

    def advance(self, n: float = 1) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.last >= PLAIN_SECONDS:
            self.last = now
            log.info("%s", self.line(now))

    def line(self, now: float) -> str:
        seconds = max(now - self.start, 1e-9)
        rate = self.done / seconds
        text = f"{self.description}: {self.done:,.0f}"
        if self.total is not None:
            text += f"/{self.total:,.0f}"
        text += f" {self.unit}, {rate:,.1f} {self.unit}/s"
        if self.total is not None and rate > 0 and self.done < self.total:
            text += f", {(self.total - self.done) / rate:.0f} s left"
        return text


@contextmanager
def progress(description: str, total: float | None = None, unit: str = "docs") -> Iterator[Counter]:
    """Show the progress of a step; call ``.advance(n)`` on what it yields.

    Args:
        description: what is being done, e.g. ``"tokenize"``.
        total: how many units there are; ``None`` when unknown (no time left is shown then).
        unit: what is counted, in the plural.
    """
    if not sys.stderr.isatty():
        lines = _Lines(description, total, unit)
        yield lines
        log.info("%s in %.1f s", lines.line(time.monotonic()), time.monotonic() - lines.start)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, rate="")
        start = time.monotonic()

        class Rated(_Bar):
            def advance(self, n: float = 1) -> None:
                super().advance(n)
                done = bar.tasks[bar.task_ids.index(task)].completed
                bar.update(task, rate=f"{done / max(time.monotonic() - start, 1e-9):,.1f}/s")

        yield Rated(bar, task)
