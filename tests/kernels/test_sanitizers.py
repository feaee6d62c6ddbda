"""The tests of the kernels once more, under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.kernels.build import HERE, SANITIZERS, shared_library
from tests.kernels.conftest import CASES, LAUNCHERS, PREBUILT

from sparkwright.native.compiler import host_compiler
from sparkwright.paths import CHECKOUT
from sparkwright.run import run

pytestmark = pytest.mark.compiles

TESTS = ("test_gemv.py", "test_quantize.py", "test_shim.py")

CALL = """
import ctypes, sys
out, message = (ctypes.c_float * 4096)(), ctypes.create_string_buffer(4096)
ctypes.CDLL(sys.argv[1]).run_case(sys.argv[2].encode(), out, message, ctypes.c_size_t(4096))
"""


@pytest.fixture(scope="module")
def sanitized(cuda_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized")
    for name, sources in (("launchers", LAUNCHERS), ("cases", CASES)):
        shared_library(folder / name, cuda_home, sources, *SANITIZERS)
    return folder


def under_sanitizers(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Python with the sanitizers' libraries loaded first, as they must be."""
    compiler = host_compiler().path
    preload = [run([compiler, f"-print-file-name={name}"]).strip() for name in ("libasan.so", "libubsan.so")]
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1", PREBUILT: str(folder)}
    variables = os.environ | options | {"LD_PRELOAD": ":".join(preload), "PYTHONMALLOC": "malloc"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=CHECKOUT, env=variables, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def outcomes(sanitized: Path) -> dict[str, subprocess.CompletedProcess[str]]:
    """What pytest says of each file, two at a time."""

    def outcome(tests: str) -> subprocess.CompletedProcess[str]:
        return under_sanitizers(sanitized, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / tests)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(TESTS, pool.map(outcome, TESTS), strict=True))


@pytest.mark.parametrize("tests", TESTS)
def test_the_tests_pass_under_sanitizers(outcomes: dict[str, subprocess.CompletedProcess[str]], tests: str) -> None:
    done = outcomes[tests]
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout


def test_an_overrun_of_shared_memory_is_caught(sanitized: Path) -> None:
    done = under_sanitizers(sanitized, "-c", CALL, sanitized / "cases" / "library.so", "overrun")
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
    assert "shim_cases.cu" in done.stderr
