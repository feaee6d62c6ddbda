"""What can be compiled of vLLM, and the objects that belong to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from sparkwright.errors import ConfigurationError, UsageError
from sparkwright.pins import Line


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A choice of objects by globs over their paths below the build folder, and whether libraries are linked."""

    name: str
    objects: tuple[str, ...]
    libraries: bool

    def select(self, objects: Sequence[str]) -> tuple[str, ...]:
        """The objects of this unit, in the order given.

        Raises:
            ConfigurationError: a glob matches nothing, so upstream moved or renamed what we mean.
        """
        for pattern in self.objects:
            if not any(fnmatchcase(path, pattern) for path in objects):
                raise ConfigurationError(
                    f"unit {self.name}: no object matches {pattern}",
                    cause="upstream moved or renamed the file, or CMake found nothing to build for the arch list",
                    remedy="compare src/sparkwright/native/units.py with the objects that CMake lists",
                )
        return tuple(path for path in objects if any(fnmatchcase(path, pattern) for pattern in self.objects))

    def require_of(self, line: Line) -> None:
        """Make sure that the line can be compiled as far as this unit goes.

        Raises:
            ConfigurationError: it cannot.
        """
        if self.name not in line.native_units:
            raise ConfigurationError(
                f"unit {self.name} cannot be compiled for line {line.name}",
                cause=line.why or f"its units are {', '.join(line.native_units)}",
                remedy="choose another --line; ./build.sh --host --check patches and verifies this one",
            )


UNITS: Final = {
    unit.name: unit
    for unit in (
        Unit(
            name="nvfp4",
            objects=(
                "*/csrc/quantization/fp4/*.cu.o",
                "*/csrc/quantization/w8a8/fp8/*.cu.o",
                "*/csrc/quantization/w8a8/cutlass/*.cu.o",
                "*/csrc/nvfp4_kv_cache_kernels.cu.o",
                "*/csrc/quantization/marlin/*_fe2m1f_*.cu.o",
                "*/csrc/quantization/marlin/marlin.cu.o",
                "*/csrc/quantization/marlin/gptq_marlin_repack.cu.o",
                "*/csrc/moe/marlin_moe_wna16/*_fe2m1f_*.cu.o",
                "*/csrc/moe/marlin_moe_wna16/ops.cu.o",
            ),
            libraries=False,
        ),
        Unit(
            # Enough to see that an image can be built at all: a quantiser, its dispatch, an FP4 GEMM.
            name="smoke",
            objects=(
                "*/csrc/quantization/fp4/nvfp4_blockwise_moe_kernel.cu.o",
                "*/csrc/quantization/fp4/nvfp4_quant_entry.cu.o",
                "*/csrc/quantization/fp4/nvfp4_quant_kernels.cu.o",
                "*/csrc/quantization/marlin/gptq_marlin_repack.cu.o",
            ),
            libraries=False,
        ),
        Unit(name="native", objects=("*.o",), libraries=True),
    )
}


def unit(name: str) -> Unit:
    """The unit of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in UNITS:
        raise UsageError(f"{name!r} is not a unit", remedy=f"choose from {', '.join(UNITS)}")
    return UNITS[name]
