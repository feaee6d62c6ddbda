"""The errors a user can meet: each says what happened, the likely cause, and what to do next.

Code raises these; only `sparkwright.cli.main` prints them and exits. A class has one exit code, so a
script can tell the cases apart without reading text.
"""

from typing import ClassVar


class SparkwrightError(Exception):
    """Base of all errors that are shown to the user without a traceback."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, cause: str = "", remedy: str = "") -> None:
        self.what = what
        self.cause = cause
        self.remedy = remedy
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.cause:
            lines.append(f"Likely cause: {self.cause}")
        if self.remedy:
            lines.append(f"What to do: {self.remedy}")
        return "\n".join(lines)


class CommandFailedError(SparkwrightError):
    """A program that we started ended with a non-zero status."""

    exit_code = 2


class PatchDriftError(SparkwrightError):
    """A patch neither finds its fault nor recognises the upstream fix, or a tree changed under us."""

    exit_code = 3


class AuditFailedError(SparkwrightError):
    """The machine code is not what was required of it."""

    exit_code = 4


class BuildFailedError(SparkwrightError):
    """Compiling, linking or packing failed."""

    exit_code = 5


class UsageError(SparkwrightError):
    """The command line cannot be carried out as written."""

    exit_code = 64


class InputUnreadableError(SparkwrightError):
    """A file that was named is missing, truncated or not of the expected kind."""

    exit_code = 66


class UnavailableError(SparkwrightError):
    """Something outside is needed and cannot be reached: the package index, a compiler."""

    exit_code = 69


class LockedError(SparkwrightError):
    """Another run is working in the same place."""

    exit_code = 75


class OutputError(SparkwrightError):
    """A result cannot be written: disk full, folder read-only."""

    exit_code = 73


class IntegrityError(SparkwrightError):
    """A file's size or sha256 is not the pinned one."""

    exit_code = 76


class ConfigurationError(SparkwrightError):
    """A pins file, recipe or setting is wrong."""

    exit_code = 78
