"""What a weight costs in the loops that stream weights: instructions, by kernel, target and variant.

    python -m tests.kernels.instructions    writes kernels/NAME/instructions.json of each

A test compares the files with the compiler's output, so that a change shows in a review.
"""

import re
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.kernels.sass import KERNELS, Code, count, functions, opcodes, streaming_loop

from sparkwright.files import write_json
from sparkwright.native.toolchain import toolchain

TARGETS: Final = ("121a", "90")
"""What the record is about."""

Compiled = dict[str, dict[str, Code]]
"""The functions of a kernel by target and readable name."""


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """A source whose kernels stream weights."""

    name: str
    instance: re.Pattern[str]
    """An instance of a template in a mangled name."""
    readable: Callable[[re.Match[str]], str]
    rows: int
    """Of the weights' matrix, to a warp."""
    widest: int
    """The weights that a lane loads of a row where it uses 16 bytes."""
    bits: float
    """Of memory to a weight."""

    @property
    def source(self) -> Path:
        """The device code."""
        return KERNELS / self.name / f"{self.name}.cu"

    @property
    def record(self) -> Path:
        """Where the costs are written down."""
        return KERNELS / self.name / "instructions.json"

    def variant(self, mangled: str) -> str:
        """A readable name of an instance of a template."""
        found = self.instance.search(mangled)
        assert found, mangled
        return self.readable(found)

    def is_wide(self, variant: str) -> bool:
        """Whether this variant loads 16 bytes of codes."""
        return f"{self.widest} weights to a load" in variant

    def weights(self, variant: str) -> int:
        """The weights that a lane takes in one turn of the loop."""
        return self.rows * (self.widest if self.is_wide(variant) else 16)

    def budget(self) -> float:
        """The instructions for a weight that GB10 has time for while the weight is read.

        48 multiprocessors that each start 128 lanes' instructions a clock, at 2.4 GHz (a figure from memory), and
        273 GB/s.
        """
        return 48 * 128 * 2.4e9 / (273e9 * 8 / self.bits)


def _dtype(mangled: str) -> str:
    return "float16" if mangled.endswith("half") else "bfloat16"


def _layout(flag: str) -> str:
    return "tiled" if flag == "1" else "linear"


def _gemv(found: re.Match[str]) -> str:
    warps = {"1": "one warp to a row", "2": "two warps to a row"}[found[5]]
    return f"{_dtype(found[1])}, {found[2]} rows of x, {_layout(found[4])}, {found[3]} weights to a load, {warps}"


def _moe_decode(found: re.Match[str]) -> str:
    projection = found[1].replace("_", " and ")
    return f"{projection}, {_dtype(found[2])}, {_layout(found[4])}, {found[3]} weights to a load"


def _gemv_2of4(found: re.Match[str]) -> str:
    return f"{_dtype(found[1])}, {found[2]} rows of x, {16 * int(found[3])} weights to a load"


_TYPE: Final = r"(13__nv_bfloat16|6__half)"
GEMV: Final = Streaming(
    name="nvfp4_gemv",
    instance=re.compile(rf"gemv_kernelI{_TYPE}Li(\d+)ELi(\d+)ELb(\d)ELi(\d+)EE"),
    readable=_gemv,
    rows=4,
    widest=32,
    bits=4.5,
)
MOE_DECODE: Final = Streaming(
    name="nvfp4_moe_decode",
    instance=re.compile(rf"\d(gate_up|down)_kernelI{_TYPE}Li(\d+)ELb(\d)EE"),
    readable=_moe_decode,
    rows=4,
    widest=32,
    bits=4.5,
)
GEMV_2OF4: Final = Streaming(
    name="nvfp4_gemv_2of4",
    instance=re.compile(rf"gemv_2of4_kernelI{_TYPE}Li(\d+)ELi(\d+)EE"),
    readable=_gemv_2of4,
    rows=2,
    widest=64,
    bits=3.5,
)
ALL: Final = (GEMV, MOE_DECODE, GEMV_2OF4)


def compile_all(cuda_home: Path, scratch: Path, targets: Iterable[str] = TARGETS) -> dict[str, Compiled]:
    """Every kernel for every target, two compilers at a time."""

    def compiled(job: tuple[Streaming, str]) -> dict[str, Code]:
        kernel, target = job
        found = functions(cuda_home, kernel.source, target, scratch)
        return {kernel.variant(name): code for name, code in found.items()}

    jobs = [(kernel, target) for kernel in ALL for target in targets]
    made: dict[str, Compiled] = {kernel.name: {} for kernel in ALL}
    with ThreadPoolExecutor(2) as pool:
        for (kernel, target), code in zip(jobs, pool.map(compiled, jobs), strict=True):
            made[kernel.name][target] = code
    return made


def costs(code: Code, weights: int) -> dict[str, Any]:
    """Instructions of the loop, also for one weight whatever the number of rows of x, and its most frequent opcodes.

    `outside` is what a warp goes through once at most.
    """
    loop = streaming_loop(code)
    frequent = {opcode: number for opcode, number in opcodes(loop).items() if number * 20 >= len(loop)}
    return {
        "per_weight": round(len(loop) / weights, 3),
        "loop": len(loop),
        "outside": len(code) - len(loop),
        "loads": count(loop, r"LDG"),
        "opcodes": frequent,
    }


def measured(kernel: Streaming, compiled: Compiled) -> dict[str, Any]:
    """What the record holds: the variants with loads of 16 bytes."""
    return {
        target: {
            name: costs(code, kernel.weights(name))
            for name, code in sorted(compiled[target].items())
            if kernel.is_wide(name)
        }
        for target in TARGETS
    }


def main() -> None:
    """Write the records."""
    with tempfile.TemporaryDirectory(prefix="sparkwright-") as scratch:
        compiled = compile_all(toolchain(), Path(scratch))
    for kernel in ALL:
        write_json(kernel.record, {"units": "SASS instructions", **measured(kernel, compiled[kernel.name])})


if __name__ == "__main__":
    main()
