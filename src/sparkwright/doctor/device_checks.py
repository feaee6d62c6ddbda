"""Judge what a GPU, its driver and vLLM on it said; nothing here touches a GPU."""

from typing import Final

from pydantic import BaseModel, ConfigDict

from sparkwright.doctor.device_program import SelfTest, Sweep
from sparkwright.doctor.driver import Driver, Gpu
from sparkwright.doctor.model import Result, failed, passed, warned

GB10_BYTES_PER_SECOND: Final = 273e9
"""What the memory of a GB10 is rated at."""
_SLOW: Final = 0.5
_CUDA_NEEDED: Final = (13, 0)
_ROUNDING: Final = 2.0**-8
"""Half a unit in the last place of bfloat16, relative to the largest value of a product."""
EXPECTED_LINEAR: Final = "FlashInferCutlassNvFp4LinearKernel"
"""vLLM 0.33.0's own choice on 12.1 with FlashInfer usable."""


class Product(BaseModel):
    """How far vLLM's NVFP4 product is from float64."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    relative_error: float
    zeros: float
    """The share of zeros, beyond those of the right answer."""
    not_finite: float


class Choice(BaseModel):
    """Which kernel vLLM takes for NVFP4 linear layers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flashinfer: bool
    chosen: str
    refused: dict[str, str]


def driver(found: Driver, kernel_module: str) -> Result:
    """The driver runs CUDA 13."""
    name = "driver"
    shown = f"{kernel_module or 'release unknown'}, CUDA {found.cuda[0]}.{found.cuda[1]}"
    if found.cuda < _CUDA_NEEDED:
        return failed(
            name,
            shown,
            reason="the image is made with CUDA 13.0, which needs a driver of release 580 or later",
            remedy="update the driver: on DGX OS by its own updates",
        )
    return passed(name, shown)


def gpu(found: Gpu) -> Result:
    """It is a GB10."""
    name = "GPU"
    major, minor = found.capability
    shown = f"{found.name}, compute capability {major}.{minor}, {found.multiprocessors} multiprocessors"
    if not found.is_gb10:
        return warned(
            name,
            shown,
            reason="this is no GB10 (12.1): the image's code is for 12.1 alone; what applies was checked",
        )
    return passed(name, shown)


def gpu_memory(found: Gpu, host_total: int | None) -> Result:
    """A GB10 shows the whole memory of the machine."""
    name = "GPU memory"
    shown = f"{found.memory / 2**30:.1f} GiB{', shared with the CPU' if found.integrated else ''}"
    if found.is_gb10 and host_total and found.memory < 0.9 * host_total:
        return warned(
            name,
            f"{shown} of {host_total / 2**30:.1f}",
            reason="the driver shows less than the machine has",
            remedy="look for a memory limit of the container, and for reserved memory in the kernel's log",
        )
    return passed(name, shown)


def e2m1(found: SelfTest, on: Gpu) -> Result:
    """The conversion to FP4 on the device gives the bits of its rule on the host."""
    name = "E2M1 conversion"
    how = "instruction" if found.hardware_convert else "software rule"
    shown = f"{found.bfloat16.values:,} bfloat16 and {found.floats.values:,} floats by the {how}"
    wrong = [sweep for sweep in (found.bfloat16, found.floats) if sweep.mismatches]
    if wrong:
        return failed(
            name,
            f"{shown}: {_mismatches(wrong)}",
            reason="quantized activations would be wrong, and with them every answer",
            remedy="report it with the output of --json: this was never seen",
        )
    if on.capability[0] in (10, 12) and not found.hardware_convert:
        return failed(
            name,
            f"{shown}, all right",
            reason="this GPU has the instruction, and the program was compiled without it: a target without suffix",
            remedy="unset NVCC_PREPEND_FLAGS and NVCC_APPEND_FLAGS",
        )
    return passed(name, f"{shown}, all right")


def _mismatches(sweeps: list[Sweep]) -> str:
    return ", ".join(f"{sweep.mismatches:,} differ, the first is {sweep.first}" for sweep in sweeps)


def bandwidth(found: SelfTest, on: Gpu) -> Result:
    """A copy within the memory, against what the memory is rated at."""
    name = "bandwidth"
    if not found.copied_per_second:
        return warned(name, "not measured", reason="two buffers of 1 GiB did not fit", remedy="stop other programs")
    shown = f"{found.copied_per_second / 1e9:.0f} GB/s read and written by a copy"
    if not on.is_gb10:
        return passed(name, shown)
    share = found.copied_per_second / GB10_BYTES_PER_SECOND
    shown = f"{shown}, {share:.0%} of 273"
    if share < _SLOW:
        return warned(
            name,
            shown,
            reason="decoding is bound by this: something else uses the memory, or the machine runs hot or throttled",
            remedy="look at nvidia-smi -q -d CLOCK,PERFORMANCE,POWER while nothing else runs",
        )
    return passed(name, shown)


def product(found: Product) -> Result:
    """One NVFP4 product of vLLM, against float64."""
    name = "NVFP4 product"
    shown = f"largest error {found.relative_error:.1e} of the largest value, against float64"
    if found.not_finite:
        why = f"{found.not_finite:.0%} of the values are no numbers"
    elif found.zeros > 0.01:
        why = f"{found.zeros:.0%} of the values are zero: the kernel is empty, compiled for a target without suffix"
    elif found.relative_error > _ROUNDING:
        why = f"more than rounding explains ({_ROUNDING:.1e})"
    else:
        return passed(name, shown)
    return failed(
        name,
        shown,
        reason=why,
        remedy="sparkwright audit --require fp4-mma on vLLM's libraries; till then serve with --linear-backend marlin",
    )


def choice(found: Choice, *, really: bool) -> Result:
    """Which kernel vLLM takes by itself for NVFP4 linear layers."""
    name = "NVFP4 backend"
    where = "" if really else ", as it would on a GB10"
    if found.chosen == EXPECTED_LINEAR:
        return passed(name, f"{found.chosen}{where}")
    refused = found.refused.get(EXPECTED_LINEAR, "it comes later in vLLM's order")
    return warned(
        name,
        f"{found.chosen or 'none'}{where}",
        reason=f"{EXPECTED_LINEAR} is not taken: {refused}"
        + ("" if found.flashinfer else "; vLLM leaves FlashInfer out where nvcc or ninja is missing"),
        remedy="see the checks of the compiler and of FlashInfer's modules",
    )
