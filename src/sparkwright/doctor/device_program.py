"""Compile the device program for the GPU that is here, run it, and read what it prints."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from sparkwright.errors import InputUnreadableError
from sparkwright.paths import CUDA_HEADERS
from sparkwright.run import run

SOURCE: Final = Path(__file__).parent / "device" / "self_test.cu"
_SECONDS: Final = "120"


class Sweep(BaseModel):
    """One set of values: how many, and how many were converted otherwise than they should be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    values: int
    mismatches: int
    first: str
    """Bits of the first value that differs."""


class SelfTest(BaseModel):
    """What the program prints."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    where: str
    hardware_convert: bool
    bfloat16: Sweep
    floats: Sweep
    copied_per_second: float = 0
    """Bytes read and written in a second by a copy within the GPU's memory; 0 when it was not measured."""


def compile_program(cuda_home: Path, target: str, into: Path, environment: Mapping[str, str]) -> Path:
    """The program for a target such as `sm_121a`.

    Raises:
        CommandFailedError: nvcc refuses it.
    """
    program = into / f"self_test.{target}"
    compute = target.replace("sm_", "compute_")
    run(
        [
            *(cuda_home / "bin" / "nvcc", "-std=c++17", "-O2", "-gencode", f"arch={compute},code={target}"),
            *("-I", CUDA_HEADERS, "-cudart", "static", "-L", cuda_home / "lib64", "-o", program, SOURCE),
        ],
        env={name: value for name, value in environment.items() if not name.startswith("NVCC_")},
    )
    return program


def run_program(program: Path, *, on_host: bool = False) -> SelfTest:
    """Run it, on the first GPU or on the host.

    Raises:
        CommandFailedError: it did not finish.
        InputUnreadableError: it printed something else than what is expected of it.
    """
    words = ["timeout", _SECONDS, os.fspath(program), *(["--host"] if on_host else [])]
    return parse(run(words))


def parse(printed: str) -> SelfTest:
    """Read what the program printed.

    Raises:
        InputUnreadableError: it is something else.
    """
    try:
        return SelfTest.model_validate_json(printed)
    except ValidationError as error:
        raise InputUnreadableError(
            f"the device program printed something else than its result: {printed.strip()[:200]!r}"
        ) from error
