"""What a check says."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from sparkwright import __version__


class Verdict(StrEnum):
    """How a check ended."""

    PASS = "pass"  # noqa: S105  a verdict
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One check: what was found, what that means, and what to do about it."""

    name: str
    verdict: Verdict
    found: str
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All checks of one run."""

    results: tuple[Result, ...]

    @property
    def failed(self) -> bool:
        """Whether at least one check failed; warnings and skipped checks are no failures."""
        return any(result.verdict is Verdict.FAIL for result in self.results)

    def to_json(self) -> dict[str, Any]:
        """The report for scripts."""
        counts = {str(verdict): sum(one.verdict is verdict for one in self.results) for verdict in Verdict}
        return {
            "sparkwright": __version__,
            "ok": not self.failed,
            "counts": counts,
            "checks": [asdict(result) for result in self.results],
        }


def passed(name: str, found: str) -> Result:
    """All is well."""
    return Result(name=name, verdict=Verdict.PASS, found=found)


def warned(name: str, found: str, *, reason: str, remedy: str = "") -> Result:
    """It works, but not as it should."""
    return Result(name=name, verdict=Verdict.WARN, found=found, reason=reason, remedy=remedy)


def failed(name: str, found: str, *, reason: str, remedy: str = "") -> Result:
    """It does not work, or its result is wrong."""
    return Result(name=name, verdict=Verdict.FAIL, found=found, reason=reason, remedy=remedy)


def skipped(name: str, *, reason: str) -> Result:
    """It could not be checked here."""
    return Result(name=name, verdict=Verdict.SKIPPED, found="", reason=reason)


def shorten(names: Sequence[str], *, most: int = 4) -> str:
    """Some names, and how many more there are."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
