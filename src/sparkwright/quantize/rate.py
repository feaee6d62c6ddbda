"""How fast an earlier run was: the only source of an estimate of time."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparkwright.errors import InputUnreadableError, UsageError


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Work per second, all that goes with it included, and of which run."""

    flop_per_second: float
    told: str


def measured(flop: int, layers: int, done: int, seconds: float) -> dict[str, Any] | None:
    """For the report: the work of the layers that this run did itself, and the machine; None when it did none."""
    if not done or seconds <= 0:
        return None
    return {"host": os.uname().nodename, "layers": done, "flop_per_second": flop * done / layers / seconds}


def read_rate(path: Path) -> Rate:
    """The rate in the report of an earlier run.

    Raises:
        InputUnreadableError: it is no report, or of a run that did no layer.
        UsageError: it comes from another machine.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        rate, device = report["rate"], report["device"]
        found = float(rate["flop_per_second"])
        over = f" over {len(report['nodes'])} actors" if report["nodes"] else ""
        done = f"{rate['layers']} layers of {report['architecture']} on {device}{over}"
        told = f"{path.name} ({done}: {found / 1e12:.3g} TFLOP/s)"
        host = rate["host"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputUnreadableError(
            f"{path} tells no rate: {error}", remedy="name the .report.json of a run that quantized layers"
        ) from error
    if host != os.uname().nodename:
        raise UsageError(
            f"{path} was measured on {host}, this is {os.uname().nodename}", remedy="name a report of this machine"
        )
    return Rate(flop_per_second=found, told=told)
