"""Tests for a machine with an NVIDIA GPU; elsewhere they are not collected, so that nothing is skipped in silence."""

from sparkwright.doctor import driver


def _has_gpu() -> bool:
    try:
        driver.query()
    except driver.NoGpuError:
        return False
    return True


collect_ignore_glob = [] if _has_gpu() else ["test_*.py"]
