"""How many compilers may run at once: the memory decides before the cores do."""

import os
from typing import Final

import psutil

PEAK_OF_ONE_FILE: Final = 9_500_000_000
"""Bytes that nvcc takes for the largest CUTLASS SM120 file of vLLM 0.33.0 (measured: 9.1 to 9.3 GB)."""
RESERVE: Final = 2_000_000_000
"""Bytes left to the rest of the machine."""


def job_count(*, available: int, cores: int, peak: int = PEAK_OF_ONE_FILE) -> int:
    """The number of jobs of `peak` bytes for `available` bytes of memory: at least one, at most one per core."""
    return min(cores, max(1, (available - RESERVE) // peak))


def default_jobs(*, peak: int = PEAK_OF_ONE_FILE) -> int:
    """The number of jobs for this machine as it is now."""
    return job_count(available=psutil.virtual_memory().available, cores=len(os.sched_getaffinity(0)), peak=peak)
