"""What the unified memory allows: compilers at run time, and whether the system keeps enough for itself."""

from typing import Final

from sparkwright.entrypoint.plan import GIB, Host

_PER_JOB: Final = 9 * 10**9  # one compiler of FlashInfer's large kernels; see docs/troubleshooting.md
_FOR_THE_HOST: Final = 8 * GIB


def jobs(host: Host) -> int:
    """How many compilers fit into the available memory and onto the processors."""
    _, available = host.memory()
    return max(1, min(host.cpu_count(), available // _PER_JOB))


def warning(share: float, host: Host) -> str | None:
    """What to say when serving would leave the system less than it needs, or nothing."""
    total, available = host.memory()
    left = available - share * total
    if left >= _FOR_THE_HOST:
        return None
    fitting = int(max(0.0, (available - _FOR_THE_HOST) / total) * 100) / 100
    return (
        f"GPU_MEMORY_UTIL={share:g} of {total / GIB:.1f} GiB is {share * total / GIB:.1f} GiB, and only "
        f"{available / GIB:.1f} GiB are available: {max(left, 0) / GIB:.1f} GiB would be left for the system, which "
        "needs about 8; a Spark that runs out of memory freezes. "
        f"Stop other programs, or set GPU_MEMORY_UTIL={fitting:g}"
    )
