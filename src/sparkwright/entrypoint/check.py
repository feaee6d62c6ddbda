"""Before a local folder is served: what its headers say would go wrong in vLLM."""

import gc
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sparkwright.errors import ConfigurationError, SparkwrightError

if TYPE_CHECKING:
    from sparkwright.checkpoint.findings import Finding

SECONDS: Final = 2.0
_SHOWN: Final = 2  # tensors or files named for a finding; `sparkwright checkpoint verify` lists all
# Marlin multiplies in 16 bits: it quantizes no activation and reads no input scale.
_ACTIVATIONS: Final = ("input-scale-missing", "input-scale-invalid")


def check(folder: str, marlin: Sequence[str], *, seconds: float = SECONDS) -> list[str]:
    """What to tell about a checkpoint that may be served; `marlin` are the backend options that name it.

    Raises:
        ConfigurationError: vLLM would fail on it, or answer noise under a green /health.
    """
    found: list[Finding] = []
    failures: list[Exception] = []

    def read() -> None:
        # Only here: a hub id is checked by the hub's own client.
        from sparkwright.checkpoint.checkpoint import read_checkpoint
        from sparkwright.checkpoint.structure import check_structure

        # All that is read stays until the end: looking for garbage in it takes a third of the time.
        gc.disable()
        try:
            # One by one: what was found in time counts.
            for one in check_structure(read_checkpoint(Path(folder))):
                found.append(one)
        except Exception as error:  # noqa: BLE001 - a fault of the check must not look like one of the disk
            failures.append(error)
        finally:
            gc.enable()

    # A thread, because a network disk may keep a read for minutes; the exec that follows ends it.
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(seconds)
    late = reader.is_alive()
    found = sorted(found, key=lambda one: one.rule.severity)
    if any(one.rule.code == "weights-missing" for one in found):
        return [f"MODEL={folder} was not checked: it holds no safetensors file"]
    errors = [one for one in found if one.rule.severity == "error" and not _unread(one, marlin)]
    if errors:
        raise _refusal(folder, errors)
    notices = [f"MODEL={folder}: {describe(one)}. {one.rule.consequence}" for one in found]
    if late:
        notices.append(f"MODEL={folder} was not checked to the end: its headers took more than {seconds:g} s")
    for failure in failures:
        known = isinstance(failure, SparkwrightError | OSError)
        reason = failure if known else f"the check itself failed ({type(failure).__name__}: {failure})"
        notices.append(f"MODEL={folder} was not checked to the end: {reason}")
    return notices


def _unread(finding: "Finding", marlin: Sequence[str]) -> bool:
    """Whether it is about input scales, and all layers concerned are computed by Marlin."""
    if finding.rule.code not in _ACTIVATIONS:
        return False
    experts = {".experts." in subject for subject in finding.subjects}
    return {"--moe-backend" if expert else "--linear-backend" for expert in experts} <= set(marlin)


def describe(finding: "Finding") -> str:
    """One line: what it is, and some of what it concerns."""
    named = ", ".join(finding.subjects[:_SHOWN])
    more = len(finding.subjects) - _SHOWN
    parts = [named + (f" and {more} more" if more > 0 else ""), finding.detail]
    detail = "; ".join(part for part in parts if part)
    return f"{finding.rule.title} ({finding.rule.code}{f': {detail}' if detail else ''})"


def _refusal(folder: str, errors: Sequence["Finding"]) -> ConfigurationError:
    first, *others = errors
    lines = [f"MODEL={folder} must not be served: {describe(first)}", first.rule.consequence]
    lines += [f"Also: {describe(one)}" for one in others]
    return ConfigurationError(
        "\n".join(lines),
        remedy=f"{first.rule.remedy} `sparkwright checkpoint verify {folder}` shows all; CHECK=0 serves it as it is.",
    )
