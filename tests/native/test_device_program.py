"""The doctor's device program: it compiles for GB10 and other GPUs, and its sweep finds a wrong rule on the host."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkwright.audit import audit
from sparkwright.audit.target import Target
from sparkwright.doctor import device_program, driver
from sparkwright.doctor.driver import NoGpuError
from sparkwright.doctor.machine import Machine
from sparkwright.doctor.model import Verdict
from sparkwright.doctor.software_checks import compiler
from sparkwright.errors import CommandFailedError
from sparkwright.native.compiler import host_compiler
from sparkwright.native.cuda_home import add_driver_stub
from sparkwright.paths import CUDA_HEADERS
from sparkwright.pins import load_line
from sparkwright.run import run

pytestmark = pytest.mark.compiles

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


@pytest.fixture(scope="module")
def program(cuda_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program for GB10, compiled where a variable would have nvcc do something else."""
    spoilt = ENVIRONMENT | {"NVCC_PREPEND_FLAGS": "-arch=sm_75 --no-such-option"}
    return device_program.compile_program(cuda_home, "sm_121a", tmp_path_factory.mktemp("program"), spoilt)


def test_on_gb10_the_conversion_is_the_instruction(program: Path) -> None:
    facts = audit(program)
    own = [code for one in facts.containers for code in one.code() if code.target == "sm_121a"]
    assert sum(code.e2m1_convert for code in own) == 12  # four for eight values together, eight for each alone


def test_elsewhere_it_is_the_rule(cuda_home: Path, tmp_path: Path) -> None:
    other = device_program.compile_program(cuda_home, "sm_90a", tmp_path, ENVIRONMENT)
    targets = {target for one in audit(other).containers for target in one.sass()}
    assert "sm_90a" in targets
    assert not any(Target.parse(target).loads_on_gb10 for target in targets)


def test_the_host_twin_of_the_sweep_finds_nothing_wrong(program: Path) -> None:
    found = device_program.run_program(program, on_host=True)
    assert found.where == "host"
    assert (found.bfloat16.values, found.bfloat16.mismatches) == (65536, 0)
    assert found.floats.values > 1_000_000
    assert found.floats.mismatches == 0


def test_a_wrong_rule_is_found(cuda_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = "bits_of(2.0f * y + two_23)", "bits_of(2.0f * y + (two_23 + 1.0f)) - 1u"  # ties to odd
    headers = shutil.copytree(CUDA_HEADERS, tmp_path / "headers")
    header = headers / "gb10" / "e2m1.cuh"
    assert header.read_text().count(right) == 1
    header.write_text(header.read_text().replace(right, wrong))
    monkeypatch.setattr(device_program, "CUDA_HEADERS", headers)
    broken = device_program.compile_program(cuda_home, "sm_90a", tmp_path, ENVIRONMENT)
    found = device_program.run_program(broken, on_host=True)
    assert found.bfloat16.mismatches > 0
    assert found.floats.mismatches > 0


def test_without_a_driver_the_program_ends_with_the_reason(program: Path) -> None:
    if _real_driver():
        pytest.skip("a driver is here: this is about its absence")
    with pytest.raises(CommandFailedError, match="allocating memory: CUDA driver version is insufficient"):
        device_program.run_program(program)


def _real_driver() -> bool:
    try:
        driver.query()
    except NoGpuError:
        return False
    return True


# The driver, as a library of our own that answers as one does.

GB10_ANSWERS = """\
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return STATUS; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "NVIDIA GB10", size); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 128000000000u; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) {
  *value = which == 75 ? 12 : which == 76 ? 1 : which == 16 ? 48 : which == 18 ? 1 : -1;
  return 0;
}
"""
MakeDriver = Callable[..., str]


@pytest.fixture
def make_driver(tmp_path: Path) -> MakeDriver:
    def make(*, status: int = 0, count: int = 1) -> str:
        source, library = tmp_path / "driver.c", tmp_path / f"libcuda-{status}-{count}.so"
        source.write_text(GB10_ANSWERS.replace("STATUS", str(status)).replace("COUNT", str(count)))
        run([host_compiler().path, "-x", "c", "-shared", "-fPIC", "-o", library, source])
        return str(library)

    return make


def test_a_driver_is_asked_for_what_matters(make_driver: MakeDriver) -> None:
    found = driver.query(make_driver(count=2))
    assert found.cuda == (13, 0)
    assert len(found.gpus) == 2
    assert found.gpus[0] == driver.Gpu(
        name="NVIDIA GB10", capability=(12, 1), memory=128_000_000_000, multiprocessors=48, integrated=True
    )


@pytest.mark.parametrize(
    ("status", "count", "why"),
    [
        (0, 0, "the driver finds no GPU"),
        (100, 1, "the driver finds no GPU"),
        (803, 1, "of different releases"),
        (999, 1, "error 999"),
    ],
)
def test_a_driver_that_refuses_says_why(make_driver: MakeDriver, status: int, count: int, why: str) -> None:
    with pytest.raises(NoGpuError, match=why):
        driver.query(make_driver(status=status, count=count))


def test_no_driver_and_the_linkers_stub_are_told_apart(cuda_home: Path, tmp_path: Path) -> None:
    with pytest.raises(NoGpuError, match="--gpus all"):
        driver.query(str(tmp_path / "libcuda.so.1"))
    home = tmp_path / "cuda"
    (home / "include").mkdir(parents=True)
    shutil.copy2(cuda_home / "include" / "cuda.h", home / "include" / "cuda.h")
    with pytest.raises(NoGpuError, match="the stub that programs are linked with"):
        driver.query(str(add_driver_stub(home, host_compiler())))


def test_the_check_of_the_compiler_uses_it(cuda_home: Path, tmp_path: Path) -> None:
    machine = Machine(environment={"PATH": "/usr/bin:/bin", "CUDA_HOME": str(cuda_home)})
    result = compiler(machine, load_line("0.33.0"))
    assert result.verdict is Verdict.WARN
    assert "nvcc compiles; missing:" in result.found
    assert "lib64/stubs/libcuda.so" in result.found
    broken = tmp_path / "bin" / "nvcc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho nvcc fatal: unsupported gpu architecture sm_121a >&2\nexit 1\n")
    broken.chmod(0o755)
    refused = compiler(Machine(environment={"PATH": "/usr/bin", "CUDA_HOME": str(tmp_path)}), load_line("0.33.0"))
    assert refused.verdict is Verdict.FAIL
    assert "unsupported gpu architecture" in refused.reason
