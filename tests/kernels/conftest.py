"""The kernels, built for the CPU."""

import os
from pathlib import Path

import pytest
from tests.kernels.build import HERE, KERNELS, shared_library
from tests.kernels.launchers import Launchers

LAUNCHERS = (
    KERNELS / "nvfp4_gemv" / "nvfp4_gemv.cu",
    KERNELS / "nvfp4_quantize" / "nvfp4_quantize.cu",
    HERE / "interface.cpp",
)
CASES = (HERE / "shim_cases.cu",)

PREBUILT = "SPARKWRIGHT_SANITIZED_KERNELS"
"""Where the two libraries lie with sanitizers in them; test_sanitizers.py sets it for the tests that it runs again."""


@pytest.fixture(scope="session")
def launchers(cuda_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Launchers:
    """The launchers, on the CPU."""
    if folder := os.environ.get(PREBUILT):
        return Launchers(Path(folder) / "launchers" / "library.so")
    return Launchers(shared_library(tmp_path_factory.mktemp("launchers"), cuda_home, LAUNCHERS))


@pytest.fixture(scope="session")
def shim_cases(cuda_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of small kernels for the tests of the shim."""
    if folder := os.environ.get(PREBUILT):
        return Path(folder) / "cases" / "library.so"
    return shared_library(tmp_path_factory.mktemp("cases"), cuda_home, CASES)
