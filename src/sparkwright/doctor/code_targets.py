"""The targets that a library holds code for, by cuobjdump's list: seconds, where the audit reads every instruction."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sparkwright.audit import Readiness
from sparkwright.audit.target import Target
from sparkwright.errors import CommandFailedError
from sparkwright.run import run

_LISTED: Final = re.compile(r"^(?:ELF|PTX) file +\d+: .*\.(sm_\d+[af]?)\.(cubin|ptx)$", re.MULTILINE)
_NONE: Final = "does not contain device code"


@dataclass(frozen=True, kw_only=True)
class CodeTargets:
    """The targets of one library."""

    sass: frozenset[Target]
    ptx: frozenset[Target]

    @property
    def readiness(self) -> Readiness:
        """How it gets to run on GB10; a library for several GPUs counts by the best that it offers."""
        if any(target.loads_on_gb10 for target in self.sass):
            return Readiness.NATIVE
        if any(target.compiles_on_gb10 for target in self.ptx):
            return Readiness.JIT
        return Readiness.NONE


def parse(listing: str) -> CodeTargets:
    """Read what `cuobjdump -lelf -lptx` prints."""
    found = _LISTED.findall(listing)
    return CodeTargets(
        sass=frozenset(Target.parse(target) for target, kind in found if kind == "cubin"),
        ptx=frozenset(Target.parse(target) for target, kind in found if kind == "ptx"),
    )


def code_targets(cuobjdump: Path, library: Path) -> CodeTargets | None:
    """The targets of a library, None when it holds no device code.

    Raises:
        CommandFailedError: cuobjdump cannot read it.
    """
    try:
        return parse(run([cuobjdump, "-lelf", "-lptx", library]))
    except CommandFailedError as error:
        if _NONE in error.what:
            return None
        raise
