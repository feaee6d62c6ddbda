"""Tests that need torch: run by pytest in an environment that has it, with the operators built for the CPU by CMake.

The outer tests (test_moe.py, test_binding.py, test_sparse.py) run a file of inside/ each, and show what fails there.
"""

import hashlib
import os
import subprocess
from pathlib import Path

from tests.environments import environment
from tests.kernels.build import sanitizing

from sparkwright.files import exclusive_lock, write_atomic
from sparkwright.native.toolchain import toolchain
from sparkwright.paths import CHECKOUT, cache
from sparkwright.run import run

KERNELS = CHECKOUT / "kernels"
HERE = Path(__file__).parent
# The other two are under sanitizers without torch.
SANITIZED = "-DGB10_SANITIZED=nvfp4_gemv_2of4;nvfp4_moe_decode"


def torch_python() -> Path:
    """A Python with the CPU build of torch, CMake, ninja and pytest."""
    return environment("kernels.txt")


def _sources() -> bytes:
    digest = hashlib.sha256()
    for file in sorted([*KERNELS.rglob("*"), *(CHECKOUT / "cuda_headers").rglob("*")]):
        if file.suffix in {".cu", ".cuh", ".h", ".cpp", ".txt"}:
            digest.update(str(file.relative_to(CHECKOUT)).encode() + b"\0" + file.read_bytes())
    return digest.digest()


def cpu_library(*settings: str) -> Path:
    """The operators for the CPU, built once from these sources with these settings of CMake."""
    python, home = torch_python(), toolchain()
    key = hashlib.sha256(_sources() + f"{python} {home} {settings}".encode()).hexdigest()[:12]
    folder = cache() / "kernels" / f"cpu-{key}"
    done = folder / "made"
    with exclusive_lock(folder.with_suffix(".lock"), doing="building the kernels for the CPU", wait=True):
        if not done.exists():
            # Without much optimisation: compiling takes longer than the tests run.
            usual = ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1", "-DGB10_CPU=ON"]
            usual += [f"-DCMAKE_MAKE_PROGRAM={python.with_name('ninja')}", f"-DPython_EXECUTABLE={python}"]
            cmake, cuda = python.with_name("cmake"), f"-DCUDA_INCLUDE={home / 'include'}"
            run([cmake, "-S", KERNELS, "-B", folder, "-G", "Ninja", *usual, cuda, *settings])
            run([cmake, "--build", folder, "--parallel", "2"])
            write_atomic(done, "")
    return folder / "_C.so"


def variables(*settings: str) -> dict[str, str]:
    """What a process that imports gb10_kernels from the checkout needs; with settings, it gets a library of its own."""
    return {
        "GB10_KERNELS_LIBRARY": str(cpu_library(*settings)),
        "PYTHONPATH": str(KERNELS / "python"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }


def run_inside(name: str, *, sanitized: bool = False) -> str:
    """Run the tests of inside/NAME with torch; their report."""
    command = [
        str(torch_python()),
        "-m",
        "pytest",
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "--noconftest",
        "--rootdir",
        str(HERE / "inside"),
    ]
    command += ["-c", os.devnull, "-W", "error", "-W", "ignore::DeprecationWarning", str(HERE / "inside" / name)]
    environment_ = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    environment_ |= variables(SANITIZED) | sanitizing() if sanitized else variables()
    done = subprocess.run(command, env=environment_, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    return done.stdout
