"""What every benchmark shares: facts of the machine, and one raw result file per run."""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sparkwright import __version__
from sparkwright.files import write_json
from sparkwright.report import note

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one command cost: CPU seconds of it and its children, and wall seconds."""

    cpu: float
    wall: float


def measure(argv: Sequence[str | Path], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> Cost:
    """Run a command that must succeed and return its cost."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([os.fspath(word) for word in argv], cwd=cwd, env=env, check=True, capture_output=True)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(cpu=round(cpu, 3), wall=round(wall, 3))


def machine() -> dict[str, object]:
    """The machine as far as it matters to a reader."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": model,
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages * size / 2**30, 1),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", platform.system()),
        "python": platform.python_version(),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def store(case: str, result: dict[str, object]) -> None:
    """Write one run's raw result and print it."""
    now = datetime.now(UTC)
    record = {
        "case": case,
        "when": now.isoformat(timespec="seconds"),
        "sparkwright": __version__,
        "command": " ".join(["python", *sys.argv]).replace(str(Path.home()), "~"),
        "machine": machine(),
        **result,
    }
    path = RESULTS / f"{now:%Y-%m-%d}-{case}.json"
    write_json(path, record)
    note(f"wrote {path}")
    print(json.dumps(record, indent=2))
