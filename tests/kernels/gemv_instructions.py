"""What the inner loop of nvfp4_gemv costs on each target: instructions for one weight, by variant.

    python -m tests.kernels.gemv_instructions    writes kernels/nvfp4_gemv/instructions.json

A test compares the file with the compiler's output, so that a change shows in a review.
"""

import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from tests.kernels.sass import KERNELS, Code, count, functions, opcodes, streaming_loop

from sparkwright.files import write_json
from sparkwright.native.toolchain import toolchain

RECORD: Final = KERNELS / "nvfp4_gemv" / "instructions.json"
SOURCE: Final = KERNELS / "nvfp4_gemv" / "nvfp4_gemv.cu"
TARGETS: Final = ("121a", "90")
_NAME: Final = re.compile(r"gemv_kernelI(13__nv_bfloat16|6__half)Li(\d+)ELi(\d+)ELb(\d)ELi(\d+)EE")
_ROWS: Final = 4  # of a warp


def variant(mangled: str) -> str:
    """A readable name of an instance of the template."""
    found = _NAME.search(mangled)
    assert found, mangled
    dtype = "float16" if found[1].endswith("half") else "bfloat16"
    layout = "tiled" if found[4] == "1" else "linear"
    warps = {"1": "one warp to a row", "2": "two warps to a row"}[found[5]]
    return f"{dtype}, {found[2]} rows of x, {layout}, {found[3]} weights to a load, {warps}"


def compile_all(cuda_home: Path, scratch: Path, targets: tuple[str, ...] = TARGETS) -> dict[str, dict[str, Code]]:
    """The GEMV's functions by target and readable name."""

    def compiled(target: str) -> dict[str, Code]:
        return {variant(name): code for name, code in functions(cuda_home, SOURCE, target, scratch).items()}

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(targets, pool.map(compiled, targets), strict=True))


def costs(code: Code, weights_to_a_load: int) -> dict[str, Any]:
    """Instructions of the loop for one weight, whatever the number of rows of x, and the most frequent opcodes."""
    loop = streaming_loop(code)
    weights = _ROWS * weights_to_a_load
    frequent = {opcode: number for opcode, number in opcodes(loop).items() if number * 20 >= len(loop)}
    return {
        "per_weight": round(len(loop) / weights, 3),
        "loop": len(loop),
        "loads": count(loop, r"LDG"),
        "opcodes": frequent,
    }


def measured(compiled: dict[str, dict[str, Code]]) -> dict[str, Any]:
    """What the record holds: the variants for 16-byte loads."""
    return {
        target: {name: costs(code, 32) for name, code in sorted(kernels.items()) if "32 weights" in name}
        for target, kernels in compiled.items()
    }


def main() -> None:
    """Write the record."""
    with tempfile.TemporaryDirectory(prefix="sparkwright-") as scratch:
        write_json(RECORD, {"units": "SASS instructions", **measured(compile_all(toolchain(), Path(scratch)))})


if __name__ == "__main__":
    main()
