"""Progress of a run: a bar with an estimate on a terminal, one line a layer elsewhere."""

import datetime as dt
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from rich.progress import TaskID

from sparkwright.report import note, progress


class Display:
    """Phases one after another; `done` are the steps of each, `seconds` what it took."""

    def __init__(self) -> None:
        self._bar = progress(unit="layers")
        self._terminal = sys.stderr.isatty()
        self._tasks: dict[str, TaskID] = {}
        self._totals: dict[str, tuple[int, float]] = {}
        self.done: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Draw while the block runs."""
        with self._bar:
            yield self

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a phase without steps."""
        started = time.monotonic()
        self._say(f"{name} ...")
        yield
        self.seconds[name] = self.seconds.get(name, 0) + time.monotonic() - started

    def expect(self, name: str, steps: int) -> None:
        """A phase with this many steps is about to begin."""
        self._totals[name] = (steps, time.monotonic())
        self.done[name] = 0
        self._tasks[name] = self._bar.add_task(name, total=steps)

    def advance(self, name: str, steps: int = 1, *, detail: str = "") -> None:
        """So many steps of a phase are done."""
        total, started = self._totals[name]
        self.done[name] += steps
        self._bar.advance(self._tasks[name], steps)
        spent = time.monotonic() - started
        self.seconds[name] = spent
        left = spent / self.done[name] * (total - self.done[name])
        self._say(f"{name}: {self.done[name]} of {total}{detail}, {clock(spent)} gone, about {clock(left)} left")

    def _say(self, text: str) -> None:
        if not self._terminal:
            note(text)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(dt.timedelta(seconds=round(seconds)))
