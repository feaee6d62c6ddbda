"""Compile through ninja: what is out of date, with an estimate of how long it takes and a measure of what it cost."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from pydantic import BaseModel, ConfigDict

from sparkwright.errors import BuildFailedError, CommandFailedError
from sparkwright.files import write_json
from sparkwright.native.configure import Configuration
from sparkwright.native.environment import BuildEnvironment
from sparkwright.native.units import Unit
from sparkwright.report import note, progress
from sparkwright.run import run, run_lines

_UNKNOWN_OBJECT: Final = 20.0  # CPU seconds, about the median of vLLM 0.33.0's objects


class Measurement(BaseModel):
    """What one compiler call cost, as the launcher `measure.py` writes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    object: str
    cpu_seconds: float
    wall_seconds: float
    peak_mb: int
    """Memory of the largest process of the call."""
    cache: str
    """`hit`, `miss`, `uncacheable`, or `off` without ccache."""
    status: int


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """What a run of ninja did."""

    objects: tuple[str, ...]
    """All objects of the unit, up to date now; paths below the build folder."""
    compiled: dict[str, Measurement]
    """Those that were out of date."""
    wall_seconds: float


def unit_objects(how: Configuration, environment: BuildEnvironment, unit: Unit) -> tuple[str, ...]:
    """The unit's objects among the targets of a configured build folder."""
    targets = run([environment.tool("ninja"), "-C", how.build, "-t", "targets", "all"], env=how.variables)
    return unit.select(
        [name for name in (line.rpartition(": ")[0] for line in targets.splitlines()) if name.endswith(".o")]
    )


def compile_unit(
    how: Configuration,
    environment: BuildEnvironment,
    unit: Unit,
    *,
    jobs: int,
    measurements: Path,
    history: Path,
    log: Path,
) -> Compilation:
    """Bring a unit up to date. An interrupted run is resumed: objects that were finished are not compiled again.

    `history` keeps what each object cost without cache hits, for the estimate of later runs.

    Raises:
        BuildFailedError: a compiler call failed.
    """
    command: list[str | Path] = [environment.tool("ninja"), "-C", how.build, f"-j{jobs}"]
    # CMake files may have changed: let ninja configure again before it is asked which objects there are.
    run_ninja(["build.ninja"], command, how.variables, log)
    objects = unit_objects(how, environment, unit)
    goals = ["all"] if unit.libraries else list(objects)
    plan = run([*command, "-n", *goals], env=how.variables)
    waiting = [name for name in objects if f" {name}\n" in f"{plan}\n"]
    costs = _read_history(history)
    measurements.unlink(missing_ok=True)
    started = time.monotonic()
    if waiting:
        note(f"compiling {len(waiting)} of {len(objects)} objects with {jobs} jobs")
    try:
        with compile_progress(waiting, costs) as show:
            run_ninja(goals, command, how.variables, log, show)
    finally:
        compiled = read_measurements(measurements)
        costs |= {one.object: one.cpu_seconds for one in compiled.values() if one.cache != "hit" and not one.status}
        if compiled:
            write_json(history, dict(sorted(costs.items())))
    return Compilation(objects=objects, compiled=compiled, wall_seconds=round(time.monotonic() - started, 1))


def read_measurements(path: Path) -> dict[str, Measurement]:
    """The measurements of a run by object; a last line cut short by an interruption is left out."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return {one.object: one for one in map(Measurement.model_validate_json, lines)}


def _read_history(path: Path) -> dict[str, float]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


@contextmanager
def compile_progress(waiting: Sequence[str], costs: Mapping[str, float]) -> Iterator[Callable[[str], None]]:
    """A function that takes ninja's lines and shows how far the waiting objects are."""
    usual = median(costs.values()) if costs else _UNKNOWN_OBJECT
    left = {name: costs.get(name, usual) for name in waiting}
    total, started = sum(left.values()), time.monotonic()
    with progress(unit="CPU s") as bar:
        task = bar.add_task("compiling", total=total or 1.0)

        def show(line: str) -> None:
            name = line.rpartition(" ")[2]
            if name not in left:
                return
            advance = left.pop(name)
            rest = sum(left.values())
            counter = f"{len(waiting) - len(left)}/{len(waiting)}"
            bar.update(task, advance=advance, description=f"{counter} {Path(name).stem}")
            if bar.disable:
                minutes = (time.monotonic() - started) / (total - rest) * rest / 60
                note(f"[{counter}] {name} (about {minutes:.0f} min left)")

        yield show


def run_ninja(
    goals: Sequence[str],
    command: Sequence[str | Path],
    variables: Mapping[str, str],
    log: Path,
    on_line: Callable[[str], None] = lambda _: None,
) -> None:
    """Run ninja, and hand over each line that it writes.

    Raises:
        BuildFailedError: a compiler call failed.
    """
    try:
        run_lines([*command, *goals], env=variables, log=log, on_line=on_line)
    except CommandFailedError as error:
        killed = "Killed" in error.what or "signal 9" in error.what
        raise BuildFailedError(
            f"compiling failed:\n{error.what}",
            cause="the machine ran out of memory" if killed else "",
            remedy="run again with fewer --jobs; finished objects are kept"
            if killed
            else f"the whole output is in {log}",
        ) from error
