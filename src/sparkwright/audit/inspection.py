"""Turn one piece of device code into facts, by what cuobjdump and nvdisasm print about it."""

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from sparkwright.audit import elf
from sparkwright.audit.disassembler import Disassembler
from sparkwright.audit.model import FatBinary, MachineCode
from sparkwright.audit.target import Target
from sparkwright.errors import CommandFailedError, InputUnreadableError
from sparkwright.run import run

_MAJOR: Final = 12

_HEADING: Final = re.compile(r"^Fatbin (?P<kind>\w+) code:\n=+\narch = (?P<target>sm_\w+)$", re.MULTILINE)
_REGISTERS: Final = re.compile(r"\bREG:(\d+)\b")
_KERNEL: Final = re.compile(r'"STO_CUDA_ENTRY\b')
_SECTION: Final = re.compile(r"^//-+ \.text\.(?P<kernel>\S+)", re.MULTILINE)
_TARGET: Final = re.compile(r"^\s*\.target\s+(sm_\w+)$", re.MULTILINE)
_INSTRUCTION: Final = re.compile(
    r"^ +/\*[0-9a-f]+\*/ +(?:@!?U?P\w+ +)?(?P<opcode>BPT|F2FP|OMMA|QMMA|STL)(?P<modifiers>[.\w]*)", re.MULTILINE
)
_COMPILER_TARGET: Final = re.compile(rb"(?:-arch|--gpu-name)[ =](sm_\d+[af]?)\b")

# What CUTLASS, and vLLM's wrappers of it, print before the trap that replaces code the target cannot have.
_WRONG_TARGET: Final = re.compile(
    rb"Arch conditional MMA instruction used without targeting"
    rb"|without CUTE_ARCH_\w+_ENABLED"
    rb"|This kernel only supports sm"
)

# A CUTLASS kernel's name tells the architecture it is made for, and older ones that it borrows parts from.
_FOR_12: Final = re.compile(r"[Ss][Mm]12[01]")
_FOR_OTHERS: Final = re.compile(r"[Ss][Mm](?:[7-9]\d|10\d|110)")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One member of a fat binary, as cuobjdump lists it."""

    is_sass: bool
    target: Target
    max_registers: int


def parse_entries(text: str) -> tuple[Entry, ...]:
    """Read `cuobjdump -res-usage` of a fat binary: its members in order."""
    headings = list(_HEADING.finditer(text))
    bounds = [*(heading.start() for heading in headings), len(text)]
    return tuple(
        Entry(
            is_sass=heading["kind"] == "elf",
            target=Target.parse(heading["target"]),
            max_registers=_largest(text[heading.end() : end]),
        )
        for heading, (_, end) in zip(headings, pairwise(bounds), strict=True)
        if heading["kind"] in ("elf", "ptx")
    )


def choose(sass: tuple[Target, ...]) -> int | None:
    """Which of these cubins to look into: the one GB10 picks, else any for 12.x, else none."""
    candidates = [index for index, target in enumerate(sass) if target.major == _MAJOR]
    return max(candidates, key=lambda index: _preference(sass[index]), default=None)


def parse_disassembly(text: str, *, cubin: bytes, labelled: Target | None, max_registers: int) -> MachineCode:
    """Count what `nvdisasm -c` prints for a cubin; `labelled` is the target its fat binary names."""
    fp4_mma = fp8_mma = convert = decode = traps = 0
    family_only = False
    spilling: set[str] = set()
    sections = list(_SECTION.finditer(text))
    bounds = [*(section.start() for section in sections), len(text)]
    for section, (start, end) in zip(sections, pairwise(bounds), strict=True):
        kernel = section["kernel"]
        for found in _INSTRUCTION.finditer(text, start, end):
            modifiers = found["modifiers"].split(".")
            match found["opcode"]:
                case "OMMA" if "SF" in modifiers:
                    fp4_mma += 1
                    family_only = True
                case "QMMA":
                    fp8_mma += 1
                    family_only |= "SF" in modifiers
                case "F2FP" if "E2M1" in modifiers:
                    family_only = True
                    if any(modifier.startswith("UNPACK") for modifier in modifiers):
                        decode += 1
                    else:
                        convert += 1
                case "BPT" if "TRAP" in modifiers:
                    traps += not _is_for_other_gpus(kernel)
                case "STL":
                    spilling.add(kernel)
    return MachineCode(
        target=str(labelled or _target_of_cubin(text, cubin, family_only=family_only)),
        kernels=len(_KERNEL.findall(text)),
        fp4_mma=fp4_mma,
        fp8_mma=fp8_mma,
        e2m1_convert=convert,
        e2m1_decode=decode,
        wrong_target_traps=traps if _WRONG_TARGET.search(cubin) else 0,
        max_registers=max_registers,
        spilling_kernels=len(spilling),
    )


def inspect(piece: memoryview, name: str, tools: Disassembler) -> FatBinary:
    """The facts about one fat binary or cubin; `name` is the file it comes from.

    Raises:
        InputUnreadableError: the tools cannot make sense of it.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="sparkwright-audit-") as scratch:
            if bytes(piece[:4]) == elf.MAGIC:
                return _inspect_cubin(piece, Path(scratch), tools)
            return _inspect_fat_binary(piece, Path(scratch), tools)
    except CommandFailedError as error:
        raise InputUnreadableError(
            f"the device code of {name} cannot be read: {error.what}",
            cause="the file is damaged, or its code is for a GPU that the pinned tools do not know",
        ) from error


def _inspect_cubin(piece: memoryview, scratch: Path, tools: Disassembler) -> FatBinary:
    cubin = scratch / "code.cubin"
    cubin.write_bytes(piece)
    registers = _largest(run([tools.cuobjdump, "-res-usage", cubin]))
    code = _disassemble(cubin, tools, labelled=None, max_registers=registers)
    return FatBinary(sass=(code.target,), ptx=(), code=code if Target.parse(code.target).major == _MAJOR else None)


def _inspect_fat_binary(piece: memoryview, scratch: Path, tools: Disassembler) -> FatBinary:
    fat_binary = scratch / "code.fatbin"
    fat_binary.write_bytes(piece)
    entries = parse_entries(run([tools.cuobjdump, "-res-usage", fat_binary]))
    sass = tuple(entry for entry in entries if entry.is_sass)
    chosen = choose(tuple(entry.target for entry in sass))
    code = None
    if chosen is not None:
        # cuobjdump numbers the cubins from 1 in the order in which it lists them.
        run([tools.cuobjdump, "-xelf", f"code.{chosen + 1}.", fat_binary], cwd=scratch)
        (cubin,) = scratch.glob("*.cubin")
        code = _disassemble(cubin, tools, labelled=sass[chosen].target, max_registers=sass[chosen].max_registers)
    return FatBinary(
        sass=tuple(str(entry.target) for entry in sass),
        ptx=tuple(str(entry.target) for entry in entries if not entry.is_sass),
        code=code,
    )


def _disassemble(cubin: Path, tools: Disassembler, *, labelled: Target | None, max_registers: int) -> MachineCode:
    return parse_disassembly(
        run([tools.nvdisasm, "-c", cubin]),
        cubin=cubin.read_bytes(),
        labelled=labelled,
        max_registers=max_registers,
    )


def _target_of_cubin(text: str, cubin: bytes, *, family_only: bool) -> Target:
    """The target of a cubin that no fat binary labels.

    The tools print `sm_120` for code of `sm_120f`; the compiler's own note keeps the f. Where that note is
    missing, an instruction that base targets lack proves the family.
    """
    printed = _TARGET.search(text)
    if printed is None:
        raise InputUnreadableError("a cubin does not say which target it is for", cause="it is damaged")
    target = Target.parse(printed[1])
    if target.suffix:
        return target
    noted = {Target.parse(found.decode()) for found in _noted_targets(cubin)}
    family = Target(major=target.major, minor=target.minor, suffix="f")
    return family if family_only or family in noted else target


def _noted_targets(cubin: bytes) -> Iterator[bytes]:
    for section in elf.sections(memoryview(cubin), "a cubin"):
        if section.name == ".note.nv.tkinfo":
            yield from _COMPILER_TARGET.findall(cubin[section.offset : section.offset + section.size])


def _is_for_other_gpus(kernel: str) -> bool:
    return bool(_FOR_OTHERS.search(kernel)) and not _FOR_12.search(kernel)


def _largest(usage: str) -> int:
    return max((int(found) for found in _REGISTERS.findall(usage)), default=0)


def _preference(target: Target) -> tuple[bool, int, int]:
    return (target.loads_on_gb10, target.minor, ("", "f", "a").index(target.suffix))
