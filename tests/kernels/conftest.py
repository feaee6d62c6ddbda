"""The kernels, built for the CPU."""

import os
from pathlib import Path

import pytest
from tests.kernels.build import HERE, KERNELS, SANITIZE, shared_library
from tests.kernels.launchers import Launchers

SOURCES = (
    KERNELS / "nvfp4_gemv" / "nvfp4_gemv.cu",
    KERNELS / "nvfp4_quantize" / "nvfp4_quantize.cu",
    HERE / "interface.cpp",
)

# Set where the tests run under sanitizers, by test_sanitizers.py.
SANITIZED = "SPARKWRIGHT_KERNELS_SANITIZED" in os.environ


@pytest.fixture(scope="session")
def launchers(cuda_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Launchers:
    """The launchers, on the CPU."""
    options = SANITIZE if SANITIZED else ()
    return Launchers(shared_library(tmp_path_factory.mktemp("kernels"), cuda_home, SOURCES, *options))
