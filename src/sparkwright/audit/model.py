"""What the audit reports: facts about machine code, gathered per file."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from sparkwright.audit.target import Target


class Readiness(StrEnum):
    """How device code gets to run on GB10."""

    NATIVE = "yes"
    JIT = "JIT at first use"
    NONE = "no"


class Totals(BaseModel):
    """What some machine code for compute capability 12.x holds, taken together."""

    model_config = ConfigDict(frozen=True)

    kernels: int
    fp4_mma: int
    """Block-scaled FP4 tensor-core instructions (OMMA)."""
    fp8_mma: int
    """FP8, FP6 and mixed tensor-core instructions (QMMA)."""
    e2m1_convert: int
    """Native conversions to E2M1 (F2FP ... E2M1 ... PACK)."""
    e2m1_decode: int
    """Native conversions from E2M1 (F2FP ... E2M1.UNPACK)."""
    wrong_target_traps: int
    """Traps beside a complaint of CUTLASS about the compile target, in kernels that are not made for other GPUs."""
    max_registers: int
    spilling_kernels: int
    """Kernels that store to local memory: spilled registers or arrays."""


class MachineCode(Totals):
    """What the instructions of one cubin for compute capability 12.x are."""

    target: str


class FatBinary(BaseModel):
    """The device code of one translation unit: code for several targets, of which GB10 picks one."""

    model_config = ConfigDict(frozen=True)

    sass: tuple[str, ...]
    ptx: tuple[str, ...]
    code: MachineCode | None
    """The code GB10 would pick, or, where none loads there, other code for 12.x; None without any."""

    @property
    def readiness(self) -> Readiness:
        """How this translation unit gets to run on GB10."""
        if any(Target.parse(target).loads_on_gb10 for target in self.sass):
            return Readiness.NATIVE
        if any(Target.parse(target).compiles_on_gb10 for target in self.ptx):
            return Readiness.JIT
        return Readiness.NONE


@dataclass(frozen=True, kw_only=True)
class Container:
    """One file with device code: an object, a cubin or a shared library."""

    path: str
    fat_binaries: tuple[FatBinary, ...]

    @property
    def readiness(self) -> Readiness:
        """The best that any translation unit offers: a library for many GPUs has some that GB10 never runs."""
        found = self.translation_units()
        return next((one for one in Readiness if found[one]), Readiness.NONE)

    def translation_units(self) -> Counter[Readiness]:
        """How many translation units run natively, after compilation by the driver, or not at all."""
        return Counter(fat_binary.readiness for fat_binary in self.fat_binaries)

    def sass(self) -> Counter[str]:
        """How many cubins there are for each target."""
        return Counter(target for fat_binary in self.fat_binaries for target in fat_binary.sass)

    def ptx(self) -> Counter[str]:
        """How many PTX modules there are for each target."""
        return Counter(target for fat_binary in self.fat_binaries for target in fat_binary.ptx)

    def code(self) -> tuple[MachineCode, ...]:
        """The machine code for 12.x, one for each translation unit that has some."""
        return tuple(fat_binary.code for fat_binary in self.fat_binaries if fat_binary.code is not None)


def totals(code: Iterable[MachineCode]) -> Totals:
    """Add everything up; of the registers take the largest."""
    parts = tuple(code)
    return Totals(
        kernels=sum(part.kernels for part in parts),
        fp4_mma=sum(part.fp4_mma for part in parts),
        fp8_mma=sum(part.fp8_mma for part in parts),
        e2m1_convert=sum(part.e2m1_convert for part in parts),
        e2m1_decode=sum(part.e2m1_decode for part in parts),
        wrong_target_traps=sum(part.wrong_target_traps for part in parts),
        max_registers=max((part.max_registers for part in parts), default=0),
        spilling_kernels=sum(part.spilling_kernels for part in parts),
    )


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The facts about everything that one path names."""

    path: Path
    containers: tuple[Container, ...]
    without_device_code: tuple[str, ...]
    """Files that were looked into and hold code of the host only."""

    def totals(self) -> Totals:
        """The numbers of all containers together."""
        return totals(code for container in self.containers for code in container.code())

    def to_json(self) -> dict[str, Any]:
        """The facts for scripts."""
        return {
            "path": str(self.path),
            "containers": [_container_to_json(container) for container in self.containers],
            "without_device_code": list(self.without_device_code),
            "totals": vars(self.totals()),
        }


def _container_to_json(container: Container) -> dict[str, Any]:
    units = container.translation_units()
    return {
        "path": container.path,
        "runs_on_gb10": container.readiness.value,
        "sass": _by_target(container.sass()),
        "ptx": _by_target(container.ptx()),
        "translation_units": {
            "native": units[Readiness.NATIVE],
            "jit": units[Readiness.JIT],
            "none": units[Readiness.NONE],
        },
        **vars(totals(container.code())),
    }


def _by_target(counts: Counter[str]) -> dict[str, int]:
    return {target: counts[target] for target in sorted(counts, key=Target.parse)}
