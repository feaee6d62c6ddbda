"""What the CUDA driver says of itself and of its GPUs, asked through libcuda.so.1 alone."""

import ctypes
from dataclasses import dataclass
from typing import Final

GB10: Final = (12, 1)
_NAME_BYTES: Final = 256
_MULTIPROCESSORS, _INTEGRATED, _MAJOR, _MINOR = 16, 18, 75, 76  # CUdevice_attribute
_ERRORS: Final = {
    34: "libcuda.so.1 is the stub that programs are linked with, not a driver",
    100: "the driver finds no GPU",
    803: "the driver's library and its kernel module are of different releases",
}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU."""

    name: str
    capability: tuple[int, int]
    memory: int
    multiprocessors: int
    integrated: bool
    """Whether it shares its memory with the CPU."""

    @property
    def is_gb10(self) -> bool:
        """Whether it has GB10's compute capability."""
        return self.capability == GB10

    @property
    def target(self) -> str:
        """The most specific target that code for it can be compiled for, `sm_121a`."""
        major, minor = self.capability
        return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


@dataclass(frozen=True, kw_only=True)
class Driver:
    """A working driver with at least one GPU."""

    cuda: tuple[int, int]
    """The newest CUDA release that it runs."""
    gpus: tuple[Gpu, ...]


class NoGpuError(Exception):
    """There is no GPU to check; the message says why."""


def query(library: str = "libcuda.so.1") -> Driver:
    """Ask the driver.

    Raises:
        NoGpuError: there is no driver, or it finds no GPU.
    """
    try:
        cuda = ctypes.CDLL(library)
    except OSError as error:
        raise NoGpuError(
            "there is no libcuda.so.1: no driver, or the container was started without --gpus all"
        ) from error
    _call(cuda.cuInit, 0)
    version, count = ctypes.c_int(), ctypes.c_int()
    _call(cuda.cuDriverGetVersion, ctypes.byref(version))
    _call(cuda.cuDeviceGetCount, ctypes.byref(count))
    if not count.value:
        raise NoGpuError(_ERRORS[100])
    return Driver(
        cuda=(version.value // 1000, version.value % 1000 // 10),
        gpus=tuple(_gpu(cuda, number) for number in range(count.value)),
    )


def _gpu(cuda: ctypes.CDLL, number: int) -> Gpu:
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(_NAME_BYTES)
    _call(cuda.cuDeviceGet, ctypes.byref(device), number)
    _call(cuda.cuDeviceGetName, name, _NAME_BYTES, device)
    _call(cuda.cuDeviceTotalMem_v2, ctypes.byref(memory), device)

    def attribute(which: int) -> int:
        value = ctypes.c_int()
        _call(cuda.cuDeviceGetAttribute, ctypes.byref(value), which, device)
        return value.value

    return Gpu(
        name=name.value.decode(errors="replace"),
        capability=(attribute(_MAJOR), attribute(_MINOR)),
        memory=memory.value,
        multiprocessors=attribute(_MULTIPROCESSORS),
        integrated=bool(attribute(_INTEGRATED)),
    )


def _call(function: object, *arguments: object) -> None:
    status = function(*arguments) if callable(function) else -1
    if status:
        raise NoGpuError(_ERRORS.get(status, f"the driver answers with error {status}"))
