"""The doctor on a real GPU, whichever it is: what applies runs, and gives no wrong result."""

from pathlib import Path

import pytest

from sparkwright.doctor import device_program, driver
from sparkwright.doctor.device_checks import e2m1
from sparkwright.doctor.examination import ON_A_GPU, examine
from sparkwright.doctor.machine import Machine
from sparkwright.doctor.model import Verdict
from sparkwright.pins import default_line, load_line

pytestmark = pytest.mark.compiles


def test_the_device_converts_as_the_host(cuda_home: Path, tmp_path: Path) -> None:
    gpu = driver.query().gpus[0]
    program = device_program.compile_program(cuda_home, gpu.target, tmp_path, Machine().environment)
    found = device_program.run_program(program)
    assert found.where == "device"
    assert e2m1(found, gpu).verdict is Verdict.PASS
    assert found.copied_per_second > 0


def test_nothing_that_a_gpu_is_asked_fails(cuda_home: Path) -> None:
    machine = Machine(environment={**Machine().environment, "CUDA_HOME": str(cuda_home)})
    report = examine(machine, load_line(default_line()))
    verdicts = {one.name: one.verdict for one in report.results}
    assert set(ON_A_GPU) <= verdicts.keys()
    assert Verdict.FAIL not in {verdicts[name] for name in ON_A_GPU}
    assert verdicts["E2M1 conversion"] is Verdict.PASS
