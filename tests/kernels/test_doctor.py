"""`sparkwright doctor` runs the self-test of the kernels where they are installed; here, those built for the CPU."""

import os
import sys
from pathlib import Path

import pytest
from tests.kernels.torch_side import KERNELS, torch_python, variables
from tests.unit.doctor.test_device_checks import GB10

from sparkwright.doctor.driver import Driver
from sparkwright.doctor.examination import examine
from sparkwright.doctor.installed import Installed
from sparkwright.doctor.machine import Machine
from sparkwright.doctor.model import Result, Verdict
from sparkwright.pins import default_line, load_line

pytestmark = pytest.mark.compiles


def own_kernels(root: Path, monkeypatch: pytest.MonkeyPatch, **environment: str) -> Result:
    """What the check of this name says on a machine with a GPU, asked by a Python that has torch and gb10_kernels."""
    monkeypatch.setattr(sys, "executable", str(torch_python()))
    usual = {"PATH": os.environ["PATH"], "HOME": str(root)}
    machine = Machine(
        root=root,
        environment=usual | variables() | environment,
        installed=Installed((KERNELS / "python",)),
        architecture="aarch64",
        memlock=-1,
    )
    report = examine(machine, load_line(default_line()), ask=lambda: Driver(cuda=(13, 0), gpus=(GB10,)))
    return next(one for one in report.results if one.name == "own kernels")


def test_every_kernel_is_compared_with_its_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = own_kernels(tmp_path, monkeypatch)
    assert (result.verdict, result.found) == (Verdict.PASS, "11 agree with their references")


def test_kernels_that_cannot_run_fail_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = own_kernels(tmp_path, monkeypatch, GB10_KERNELS_LIBRARY=str(tmp_path / "_C.so"))
    assert result.verdict is Verdict.FAIL
    assert "11 of 11 fail: nvfp4_quantize" in result.found
    assert "gb10_kernels was installed without its compiled part" in result.reason
    assert "do not enable them" in result.remedy
