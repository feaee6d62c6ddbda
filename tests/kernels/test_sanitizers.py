"""The tests of the kernels once more, under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.kernels.build import HERE, SANITIZERS, sanitizing, shared_library
from tests.kernels.conftest import CASES, LAUNCHERS, PREBUILT
from tests.kernels.torch_side import run_inside

from sparkwright.paths import CHECKOUT

pytestmark = pytest.mark.compiles

WITH_TORCH = ("moe_checks.py", "sparse_checks.py")
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
    """Python with the sanitizers' libraries loaded."""
    variables = os.environ | sanitizing() | {PREBUILT: str(folder)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=CHECKOUT, env=variables, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def outcomes(sanitized: Path) -> Iterator[dict[str, Future[str]]]:
    """What pytest says of each file, two at a time; the longest first."""

    def outcome(tests: str) -> str:
        if tests in WITH_TORCH:
            return run_inside(tests, sanitized=True)
        done = under_sanitizers(sanitized, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / tests)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    with ThreadPoolExecutor(2) as pool:
        yield {tests: pool.submit(outcome, tests) for tests in (*WITH_TORCH, *TESTS)}


@pytest.mark.parametrize("tests", [*TESTS, *WITH_TORCH])
def test_the_tests_pass_under_sanitizers(outcomes: dict[str, Future[str]], tests: str) -> None:
    assert " passed" in outcomes[tests].result()


def test_an_overrun_of_shared_memory_is_caught(sanitized: Path) -> None:
    done = under_sanitizers(sanitized, "-c", CALL, sanitized / "cases" / "library.so", "overrun")
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
    assert "shim_cases.cu" in done.stderr
