"""Tell a good checkpoint from a bad one before anything is served."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sparkwright.checkpoint.checkpoint import Checkpoint, read_checkpoint
from sparkwright.checkpoint.findings import Finding, Severity
from sparkwright.checkpoint.structure import check_structure

if TYPE_CHECKING:
    from sparkwright.checkpoint.comparison import Difference

SAMPLE: Final = 65536
"""Weights looked at in each tensor by default."""

_ORDER: Final = {Severity.ERROR: 0, Severity.WARNING: 1}


@dataclass(frozen=True, kw_only=True)
class Verification:
    """All that was found, worst first, and the comparison with the base model where one was asked for."""

    checkpoint: Checkpoint
    findings: tuple[Finding, ...]
    differences: "tuple[Difference, ...]" = ()
    not_compared: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 clean, 1 warnings, 2 errors."""
        severities = {one.rule.severity for one in self.findings}
        return 2 if Severity.ERROR in severities else 1 if severities else 0

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        # JSON has no NaN: a comparison with what is not finite has no figure.
        errors = {one.module: one.error if math.isfinite(one.error) else None for one in self.differences}
        finite = [error for error in errors.values() if error is not None]
        return {
            "directory": str(self.checkpoint.root),
            "tensors": len(self.checkpoint.tensors),
            "findings": [one.to_json() for one in self.findings],
            "against": {
                "compared": len(errors),
                "worst": max(finite, default=None),
                "mean": sum(finite) / len(finite) if finite else None,
                "errors": errors,
                "not_compared": list(self.not_compared),
            },
        }


def verify_headers(root: Path) -> Verification:
    """The part that reads no tensor: seconds even for hundreds of thousands of tensors, without numpy.

    Raises:
        InputUnreadableError: there is no such folder.
    """
    checkpoint = read_checkpoint(root)
    return Verification(checkpoint=checkpoint, findings=_sorted(list(check_structure(checkpoint))))


def verify(
    root: Path,
    *,
    against: Path | None = None,
    limit: float | None = None,
    sample: int = SAMPLE,
    advance: Callable[[], None] = lambda: None,
) -> Verification:
    """The headers, every scale, and a sample of every weight; with `against` also the error to the base model.

    `advance` is called once per module and pass. `limit` replaces the stated bounds of quantized weights.

    Raises:
        InputUnreadableError: a folder does not exist, or a file ended while it was read.
    """
    from sparkwright.checkpoint.comparison import compare, judge_base, judge_differences
    from sparkwright.checkpoint.values import check_values

    checkpoint = read_checkpoint(root)
    findings = [*check_structure(checkpoint), *check_values(checkpoint, sample=sample, advance=advance)]
    if against is None:
        return Verification(checkpoint=checkpoint, findings=_sorted(findings))
    base = read_checkpoint(against)
    findings += judge_base(base)
    if not base.tensors:
        return Verification(checkpoint=checkpoint, findings=_sorted(findings))
    differences, skipped = compare(checkpoint, base, sample=sample, advance=advance)
    findings += judge_differences(checkpoint, base, (differences, skipped), limit)
    return Verification(
        checkpoint=checkpoint,
        findings=_sorted(findings),
        differences=tuple(differences),
        not_compared=tuple(skipped),
    )


def _sorted(findings: list[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda one: _ORDER[one.rule.severity]))
