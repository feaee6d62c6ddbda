"""The machine code of a kernel's source for a target: its functions, and the loop that streams the weights."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sparkwright.native.compiler import host_compiler
from sparkwright.paths import CHECKOUT, CUDA_HEADERS
from sparkwright.run import run

KERNELS: Final = CHECKOUT / "kernels"
_FUNCTION: Final = re.compile(r"^\s+Function : (\w+)$", re.MULTILINE)
_INSTRUCTION: Final = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", re.MULTILINE)
_LAST_WORD: Final = re.compile(r"0x([0-9a-f]+)\s*$")


@dataclass(frozen=True)
class Instruction:
    """An instruction of a function, without its predicate."""

    address: int
    opcode: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        found = _LAST_WORD.search(self.operands) if self.opcode.startswith("BRA") else None
        return int(found[1], 16) if found else None


Code = tuple[Instruction, ...]


def count(code: Code, opcode: str) -> int:
    """How many instructions' opcodes match a regular expression from their start."""
    return sum(re.match(opcode, instruction.opcode) is not None for instruction in code)


def opcodes(code: Code) -> dict[str, int]:
    """The opcodes without their modifiers, and how often each occurs."""
    return dict(sorted(Counter(instruction.opcode.split(".")[0] for instruction in code).items()))


def streaming_loop(code: Code) -> Code:
    """The innermost loop that loads weights: the loads that are not kept in L1."""
    loops = [
        tuple(one for one in code if branch.target <= one.address <= branch.address)
        for branch in code
        if branch.target is not None and branch.target < branch.address
    ]
    streaming = [loop for loop in loops if count(loop, r"LDG\.E\.NA")]
    assert streaming, "no loop loads weights"
    return min(streaming, key=len)


def functions(cuda_home: Path, source: Path, target: str, scratch: Path, *options: str) -> dict[str, Code]:
    """The kernels of a source, by mangled name, as nvcc -O3 makes them for `target`, such as 121a."""
    cubin = scratch / f"{source.stem}-{target}.cubin"
    include = [f"-I{KERNELS}", f"-I{CUDA_HEADERS}"]
    nvcc: list[str | Path] = [
        cuda_home / "bin" / "nvcc",
        "-ccbin",
        host_compiler().path,
        "-std=c++20",
        "-O3",
        f"-arch=sm_{target}",
    ]
    run([*nvcc, *options, *include, "-cubin", "-o", cubin, source])
    parts = _FUNCTION.split(run([cuda_home / "bin" / "cuobjdump", "-sass", cubin]))[1:]
    return {
        name: tuple(Instruction(int(address, 16), opcode, rest) for address, opcode, rest in _INSTRUCTION.findall(text))
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    }
