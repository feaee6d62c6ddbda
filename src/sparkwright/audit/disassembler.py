"""NVIDIA's own tools for looking into device code: cuobjdump and nvdisasm, at the pinned version."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sparkwright import paths
from sparkwright.errors import ConfigurationError
from sparkwright.pins import host_wheel_kind, load_toolchain
from sparkwright.run import run
from sparkwright.sources import fetch, unpack

VARIABLE: Final = "SPARKWRIGHT_CUOBJDUMP"
_VERSION: Final = re.compile(r"\bV(\d+\.\d+\.\d+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Disassembler:
    """Where the two programs lie."""

    cuobjdump: Path
    nvdisasm: Path

    def version(self) -> str:
        """The version of nvdisasm, which decides how instructions are spelled."""
        found = _VERSION.search(run([self.nvdisasm, "--version"]))
        if found is None:
            raise ConfigurationError(f"{self.nvdisasm} does not say its version", cause="it is not NVIDIA's nvdisasm")
        return found[1]


def find_disassembler() -> Disassembler:
    """The tools named by SPARKWRIGHT_CUOBJDUMP, else those of the pinned wheels.

    CUDA_HOME and PATH are not asked: a toolkit found by chance may spell instructions differently.

    Raises:
        ConfigurationError: SPARKWRIGHT_CUOBJDUMP does not name a cuobjdump with nvdisasm beside it.
    """
    if chosen := os.environ.get(VARIABLE):
        tools = Disassembler(cuobjdump=Path(chosen), nvdisasm=Path(chosen).with_name("nvdisasm"))
        for tool in (tools.cuobjdump, tools.nvdisasm):
            if not os.access(tool, os.X_OK):
                raise ConfigurationError(
                    f"{tool} cannot be run",
                    cause=f"{VARIABLE} must name cuobjdump in a folder that also holds nvdisasm",
                    remedy=f"correct {VARIABLE}, or unset it so that the pinned tools are used",
                )
        return tools
    return Disassembler(cuobjdump=_pinned("cuobjdump"), nvdisasm=_pinned("nvdisasm"))


def _pinned(program: str) -> Path:
    file = load_toolchain().component(f"nvidia-cuda-{program}").file(host_wheel_kind())
    folder = paths.cache() / "tools" / f"{file.project}-{file.version}-{file.sha256[:12]}"
    tree = unpack(fetch(file), folder, reuse=True)
    tool = tree / "nvidia" / "cu13" / "bin" / program
    if not os.access(tool, os.X_OK):
        raise ConfigurationError(f"{file.name} holds no program {program}", remedy="correct pins/toolchain.toml")
    return tool
