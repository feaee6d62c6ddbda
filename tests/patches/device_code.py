"""Compile one file for one GPU target and read the machine code."""

import re
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparkwright.errors import CommandFailedError
from sparkwright.run import run

_VLLM_FLAGS = (
    "-std=c++20",
    "-O2",
    "--expt-relaxed-constexpr",
    "-DNDEBUG",
    "-DUSE_CUDA",
    "-DENABLE_FP8",
    "-DENABLE_NVFP4_SM120=1",
    "-DENABLE_CUTLASS_MOE_SM120=1",
    "-DENABLE_SCALED_MM_SM120=1",
    "-DTORCH_TARGET_VERSION=0x020B000000000000ULL",
    "-DCUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL=1",
)


@dataclass(frozen=True, kw_only=True)
class DeviceCompiler:
    """nvcc with the headers that vLLM's files include."""

    cuda_home: Path
    include: tuple[Path, ...]
    scratch: Path

    def sass(self, source: Path, target: str, *, include: Sequence[Path] = (), flags: Sequence[str] = ()) -> str:
        """The machine code of a file for `target`, such as 121a.

        Raises:
            CommandFailedError: nvcc or ptxas refuses it; the message says why.
        """
        cubin = self.scratch / f"{source.stem}-{target}.cubin"
        self._compile(source, target, include, [*flags, "-cubin", "-o", str(cubin)])
        return run([self.cuda_home / "bin" / "cuobjdump", "-sass", cubin])

    def undefined_symbols(
        self, source: Path, target: str, *, include: Sequence[Path] = (), flags: Sequence[str] = ()
    ) -> set[str]:
        """The names, as written in C++, that the object of a file leaves to the linker."""
        compiled = self.scratch / f"{source.stem}-{target}.o"
        self._compile(source, target, include, [*flags, "-c", "-o", str(compiled)])
        return set(run(["nm", "--undefined-only", "--demangle", "--format=just-symbols", compiled]).splitlines())

    def _compile(self, source: Path, target: str, include: Sequence[Path], flags: Sequence[str]) -> None:
        folders = [*include, *self.include, Path(sysconfig.get_paths()["include"])]
        run(
            [
                self.cuda_home / "bin" / "nvcc",
                f"-gencode=arch=compute_{target},code=sm_{target}",
                *_VLLM_FLAGS,
                *flags,
                *(word for folder in folders for word in ("-isystem", str(folder))),
                source,
            ]
        )

    def refusal(self, source: Path, target: str, *, include: Sequence[Path] = ()) -> str:
        """Why the compiler refuses a file, or an empty text when it does not."""
        try:
            self.sass(source, target, include=include)
        except CommandFailedError as error:
            return error.what
        return ""


def count(sass: str, instruction: str) -> int:
    """How often an instruction (a regular expression, matched at its start) stands in machine code."""
    return len(re.findall(rf"\*/ +(?:@!?U?P\w+ +)?{instruction}", sass))
