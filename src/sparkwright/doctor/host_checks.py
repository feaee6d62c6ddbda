"""Checks of the machine: memory that CPU and GPU share, the kernel, limits, the fast network, room on disk."""

import ctypes
import re
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from sparkwright.doctor.caches import CACHES, nearest, writable
from sparkwright.doctor.machine import Machine
from sparkwright.doctor.model import Result, failed, passed, skipped, warned

GIB: Final = 2**30
FOR_THE_SYSTEM: Final = 8 * GIB
"""What a Spark needs beside the model; below it the whole machine freezes."""
_KHO_KERNEL: Final = re.compile(r"^7\.0\.")
_UNLIMITED: Final = -1


def architecture(machine: Machine) -> Result:
    """A Spark's processor is Arm."""
    name = "architecture"
    if machine.architecture == "aarch64":
        return passed(name, machine.architecture)
    return warned(
        name,
        machine.architecture,
        reason="a Spark is aarch64: this machine builds and tests, but serves no GB10",
    )


def memory(machine: Machine) -> Result:
    """How much is available, with the page cache counted as reclaimable."""
    name = "memory"
    found = machine.meminfo()
    if not {"MemTotal", "MemAvailable", "MemFree"} <= found.keys():
        return skipped(name, reason="/proc/meminfo cannot be read")
    total, available = found["MemTotal"], found["MemAvailable"]
    shown = f"{available / GIB:.1f} of {total / GIB:.1f} GiB available"
    if available < FOR_THE_SYSTEM:
        return warned(
            name,
            shown,
            reason="CPU and GPU share this memory; with less than 8 GiB a Spark freezes instead of refusing",
            remedy="stop other programs before serving, or serve with a smaller GPU_MEMORY_UTIL",
        )
    return passed(name, shown)


def page_cache(machine: Machine) -> Result:
    """Memory that files occupy counts as used for CUDA, although the kernel would give it back."""
    name = "page cache"
    found = machine.meminfo()
    if not {"MemTotal", "MemFree", "Cached"} <= found.keys():
        return skipped(name, reason="/proc/meminfo cannot be read")
    total, free, cached = found["MemTotal"], found["MemFree"], found["Cached"]
    shown = f"{cached / GIB:.1f} GiB of files, {free / GIB:.1f} GiB free"
    if cached > total / 4 and free < total / 10:
        return warned(
            name,
            shown,
            reason="cudaMemGetInfo counts the page cache as used, so programs that ask it see almost no memory",
            remedy="sync && echo 3 | sudo tee /proc/sys/vm/drop_caches on the host, before serving",
        )
    return passed(name, shown)


def swap(machine: Machine) -> Result:
    """Swapping of memory that the GPU shares stalls everything."""
    name = "swap"
    found = machine.meminfo()
    if "SwapTotal" not in found or "SwapFree" not in found:
        return skipped(name, reason="/proc/meminfo does not tell")
    total, used = found["SwapTotal"], found["SwapTotal"] - found["SwapFree"]
    if not total:
        return passed(name, "none")
    shown = f"{used / GIB:.1f} of {total / GIB:.1f} GiB in use"
    if used > GIB:
        return warned(
            name,
            shown,
            reason="the machine ran out of memory before; a served model that is swapped out seems to hang",
            remedy="stop other programs; sudo swapoff -a brings the pages back",
        )
    return passed(name, shown)


def contiguous_memory(machine: Machine) -> Result:
    """The kernel's pool of contiguous memory, of which RDMA takes; a wrong count betrays the fault of kernel 7.0."""
    name = "contiguous memory"
    found = machine.meminfo()
    if "CmaTotal" not in found or "CmaFree" not in found:
        return skipped(name, reason="this kernel has no such pool")
    shown = f"CmaFree {found['CmaFree'] / GIB:.2f} GiB, CmaTotal {found['CmaTotal'] / GIB:.2f} GiB"
    if found["CmaFree"] > found["CmaTotal"]:
        return failed(
            name,
            shown,
            reason="more is free than there is: the fault of kernels with KHO, with which registering memory for "
            "RDMA fails (ibv_reg_mr: ENOMEM; NVIDIA/NV-Kernels issue 590)",
            remedy="add kho=off to the kernel's command line, or boot a 6.17 kernel",
        )
    return passed(name, shown)


def kernel(machine: Machine) -> Result:
    """Kernel releases that are known to be bad for RDMA."""
    name = "kernel"
    release = machine.text("proc/sys/kernel/osrelease").strip()
    if not release:
        return skipped(name, reason="/proc/sys/kernel/osrelease cannot be read")
    if _KHO_KERNEL.match(release) and "kho=off" not in machine.text("proc/cmdline").split():
        return warned(
            name,
            release,
            reason="7.0.0-1019-nvidia was reported to reserve memory for KHO so that registering memory for RDMA fails",
            remedy="several Sparks: add kho=off to the kernel's command line, or boot a 6.17 kernel",
        )
    return passed(name, release)


def locked_memory(machine: Machine) -> Result:
    """RDMA pins its buffers; a limit makes NCCL fall back to TCP or fail."""
    name = "locked memory"
    if machine.memlock == _UNLIMITED:
        return passed(name, "unlimited")
    shown = f"limited to {machine.memlock / 2**20:.0f} MiB"
    if not machine.names("sys/class/infiniband"):
        return passed(name, f"{shown}; only RDMA needs more")
    return warned(
        name,
        shown,
        reason="RDMA registers buffers of hundreds of MiB",
        remedy="docker run --ulimit memlock=-1, as compose.yaml does",
    )


def rdma(machine: Machine, *, loads: Callable[[str], object] = ctypes.CDLL) -> Result:
    """The ConnectX-7 network: device, its files, and the libraries that reach it."""
    name = "RDMA"
    devices = machine.names("sys/class/infiniband")
    missing = [library for library in ("libibverbs.so.1", "librdmacm.so.1") if not _loads(library, loads)]
    libraries = f"{' and '.join(missing)} missing" if missing else "libraries there"
    if not devices:
        return skipped(name, reason=f"no RDMA device, and one Spark needs none ({libraries})")
    shown = f"{', '.join(devices)}; {libraries}"
    if missing:
        return failed(
            name,
            shown,
            reason="NCCL falls back to TCP without a word",
            remedy="install libibverbs1, ibverbs-providers and librdmacm1, or use the image",
        )
    if not machine.names("dev/infiniband"):
        return warned(
            name,
            f"{shown}; no /dev/infiniband",
            reason="the device is not passed into this container",
            remedy="docker run --device /dev/infiniband, as compose.yaml does for several Sparks",
        )
    return passed(name, shown)


def _loads(library: str, loads: Callable[[str], object]) -> bool:
    try:
        loads(library)
    except OSError:
        return False
    return True


def caches(machine: Machine) -> Result:
    """Each cache can be written, and has room."""
    name = "caches"
    folders = {cache: cache.folder(machine.environment) for cache in CACHES}
    shut = [f"{cache.name} ({folder})" for cache, folder in folders.items() if not writable(folder)]
    if shut:
        return failed(
            name,
            f"cannot be written: {', '.join(shut)}",
            reason="with --user or --read-only they need a volume",
            remedy="-v spark-cache:/cache -e XDG_CACHE_HOME=/cache; docs/configuration.md names each variable",
        )
    free = {cache: shutil.disk_usage(nearest(folder)).free for cache, folder in folders.items()}
    tight = [
        f"{cache.name}: {free[cache] / 1e9:.0f} GB free at {folder}, may need {cache.grows_to_gb:g}"
        for cache, folder in folders.items()
        if free[cache] < cache.grows_to_gb * 1e9
    ]
    shown = f"{len(folders)} folders can be written, {min(free.values()) / 1e9:.0f} GB free at least"
    if tight:
        return warned(name, "; ".join(tight), reason="a full disk ends a download or a compilation", remedy="free some")
    return passed(name, shown)


def clock(built: Mapping[str, str], now: datetime | None = None) -> Result:
    """A clock in the past makes every certificate invalid, and with them downloads fail."""
    name = "clock"
    moment = now or datetime.now(UTC)
    shown = moment.isoformat(timespec="seconds")
    if "built" not in built:
        return skipped(name, reason="there is nothing dated to compare it with: no image")
    if moment < datetime.fromisoformat(built["built"]):
        return failed(
            name,
            shown,
            reason=f"it is before this image was built ({built['built']}): certificates will not be valid",
            remedy="set the clock of the host: timedatectl set-ntp true",
        )
    return passed(name, shown)


HOST_CHECKS: Final[tuple[Callable[[Machine], Result], ...]] = (
    architecture,
    kernel,
    memory,
    page_cache,
    swap,
    contiguous_memory,
    locked_memory,
    rdma,
    caches,
)
