"""Count the machine instructions that eight E2M1 conversions take on each target.

A kernel that converts is compared with one that reads and writes the same and only combines the words; what the latter
needs for combining (LOP3) is taken off. Constants count, loads, stores and addresses do not. `--print` stores nothing.
"""

import argparse
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

from measuring import store

from sparkwright.native.compiler import host_compiler
from sparkwright.native.toolchain import toolchain
from sparkwright.paths import CHECKOUT, CUDA_HEADERS
from sparkwright.report import print_json
from sparkwright.run import run

KERNELS: Final = CHECKOUT / "tests" / "native" / "e2m1" / "kernels.cu"
CASES: Final = {
    "75": ("75",),
    "90": ("90",),
    "90a": ("90a",),
    "100": ("100",),
    "100a": ("100a",),
    "120": ("120",),
    "120a": ("120a",),
    "120f": ("120f",),
    "121": ("121",),
    "121a": ("121a",),
    "121f": ("121f",),
    "121 --use_fast_math": ("121", "--use_fast_math"),
    "121a software": ("121a", "-DGB10_E2M1_SOFTWARE"),
}
FUNCTION: Final = re.compile(r"^\s+Function : (\w+)$", re.MULTILINE)
INSTRUCTION: Final = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
PADDING: Final = {"NOP", "BRA", "EXIT", "RET"}


def opcodes(cuda_home: Path, arch: str, *options: str) -> dict[str, dict[str, int]]:
    """Compile the kernels for a target and count the opcodes of each, without padding and the end."""
    with tempfile.TemporaryDirectory(prefix="sparkwright-benchmark-") as scratch:
        cubin = Path(scratch) / "kernels.cubin"
        include, compiler = f"-I{CUDA_HEADERS}", host_compiler().path
        target = ["-std=c++17", f"-arch=sm_{arch}", *options]
        run([cuda_home / "bin" / "nvcc", "-ccbin", compiler, *target, include, "-cubin", "-o", cubin, KERNELS])
        parts = FUNCTION.split(run([cuda_home / "bin" / "cuobjdump", "-sass", cubin]))[1:]
    return {
        name: dict(sorted(Counter(found for found in INSTRUCTION.findall(text) if found not in PADDING).items()))
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    }


def total(counts: dict[str, int], prefix: str = "") -> int:
    """How many instructions start with a prefix."""
    return sum(count for opcode, count in counts.items() if opcode.startswith(prefix))


def measure(cuda_home: Path, arch: str, *options: str) -> dict[str, object]:
    """Everything that is published about one target."""
    kernels = opcodes(cuda_home, arch, *options)
    frame = total(kernels["exclusive_or"]) - total(kernels["exclusive_or"], "LOP3")
    return {
        "per_8_values": total(kernels["convert_eight"]) - frame,
        "per_8_values_with_cuda_fp4": total(kernels["convert_eight_with_cuda_fp4"]) - frame,
        "opcodes": kernels,
    }


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", help="print the result instead of storing it")
    arguments = parser.parse_args()
    cuda_home = toolchain()
    targets = {case: measure(cuda_home, *options) for case, options in CASES.items()}
    compiler = run([cuda_home / "bin" / "nvcc", "--version"]).strip().splitlines()[-2]
    result: dict[str, object] = {"units": "SASS instructions", "compiler": compiler, "targets": targets}
    if arguments.print:
        print_json(result)
    else:
        store("e2m1-instructions", result)


if __name__ == "__main__":
    main()
