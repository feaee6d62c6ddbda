"""All checks together: nothing ends them early, and the command tells by its exit code how they ended."""

import json
import sys
from pathlib import Path

import pytest
from tests.unit.doctor.conftest import MakeMachine
from tests.unit.doctor.test_device_checks import GB10, GOOD, H200
from typer.testing import CliRunner

from sparkwright.cli import app
from sparkwright.doctor import device_checks, device_program, examination
from sparkwright.doctor.driver import Driver, NoGpuError
from sparkwright.doctor.installed import Installed
from sparkwright.doctor.model import Report, Verdict, failed, passed, skipped, warned
from sparkwright.errors import CommandFailedError
from sparkwright.pins import load_line

LINE = load_line("0.33.0")


def no_gpu() -> Driver:
    raise NoGpuError("there is no libcuda.so.1")


def names_and_verdicts(report: Report) -> dict[str, Verdict]:
    assert len({one.name for one in report.results}) == len(report.results)
    return {one.name: one.verdict for one in report.results}


def test_without_a_gpu_it_says_so_and_checks_everything_else(machine: MakeMachine) -> None:
    report = examination.examine(machine(installed=Installed(())), LINE, ask=no_gpu)
    found = names_and_verdicts(report)
    assert {found[name] for name in examination.ON_A_GPU} == {Verdict.SKIPPED}
    assert all("libcuda" in one.reason for one in report.results if one.name in examination.ON_A_GPU)
    assert len(found) == 25
    assert not report.failed


def test_with_a_gpu_the_same_checks_are_made(machine: MakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_program, "compile_program", lambda *_: Path("program"))
    monkeypatch.setattr(device_program, "run_program", lambda _: GOOD)
    monkeypatch.setattr(
        examination,
        "_product",
        lambda _: device_checks.product(device_checks.Product(relative_error=0, zeros=0, not_finite=0)),
    )
    here = machine(
        {"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95.05  Release"},
        installed=Installed(()),
        environment={"HOME": "/", "CUDA_HOME": "/cuda"},
    )
    report = examination.examine(here, LINE, ask=lambda: Driver(cuda=(13, 0), gpus=(GB10,)))
    found = names_and_verdicts(report)
    without = names_and_verdicts(examination.examine(machine(installed=Installed(())), LINE, ask=no_gpu))
    assert found.keys() == without.keys()
    assert {found[name] for name in examination.ON_A_GPU[:6]} == {Verdict.PASS}
    assert next(one for one in report.results if one.name == "driver").found == "580.95.05, CUDA 13.0"


def test_on_another_gpu_what_applies_is_run(machine: MakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = []
    monkeypatch.setattr(device_program, "compile_program", lambda _home, target, *_: targets.append(target))
    monkeypatch.setattr(device_program, "run_program", lambda _: GOOD.model_copy(update={"hardware_convert": False}))
    here = machine(installed=Installed(()), environment={"HOME": "/", "CUDA_HOME": "/cuda"})
    found = names_and_verdicts(examination.examine(here, LINE, ask=lambda: Driver(cuda=(13, 0), gpus=(H200,))))
    assert targets == ["sm_90a"]
    assert found["GPU"] is Verdict.WARN
    assert found["E2M1 conversion"] is Verdict.PASS
    assert found["NVFP4 product"] is Verdict.SKIPPED


def test_a_program_that_dies_on_the_gpu_is_a_failed_check(
    machine: MakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(_: Path) -> None:
        raise CommandFailedError("timeout 120 program ended with status 1\nno kernel image is available")

    monkeypatch.setattr(device_program, "compile_program", lambda *_: Path("program"))
    monkeypatch.setattr(device_program, "run_program", dies)
    here = machine(installed=Installed(()), environment={"HOME": "/", "CUDA_HOME": "/cuda"})
    report = examination.examine(here, LINE, ask=lambda: Driver(cuda=(13, 0), gpus=(GB10,)))
    (result,) = (one for one in report.results if one.name == "E2M1 conversion")
    assert (result.verdict, result.reason) == (Verdict.FAIL, "no kernel image is available")


def test_a_check_that_cannot_be_carried_out_fails_and_ends_nothing(machine: MakeMachine, site: Path) -> None:
    (site / ".sparkwright" / "patches.json").write_text("{broken")
    report = examination.examine(machine(), LINE, ask=no_gpu)
    (result,) = (one for one in report.results if one.name == "patches")
    assert result.verdict is Verdict.FAIL
    assert "is not a receipt" in result.reason
    assert report.results[-1].name == examination.ON_A_GPU[-1]


@pytest.mark.parametrize("bad", [False, True])
def test_the_exit_code_tells_whether_a_check_failed(monkeypatch: pytest.MonkeyPatch, bad: bool) -> None:
    results = [passed("a", "x"), warned("b", "y", reason="slow"), skipped("c", reason="no GPU")]
    if bad:
        results.append(failed("d", "z", reason="broken", remedy="mend it"))
    command = sys.modules["sparkwright.cli.doctor"]
    monkeypatch.setattr(command, "examine", lambda *_, **__: Report(results=tuple(results)))
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == (1 if bad else 0)
    assert "warn: b: slow" in shown.stdout
    answer = CliRunner().invoke(app, ["doctor", "--json"])
    assert answer.exit_code == shown.exit_code
    printed = json.loads(answer.stdout)
    assert printed["ok"] is not bad
    assert printed["counts"] == {"pass": 1, "warn": 1, "fail": int(bad), "skipped": 1}
    assert [one["name"] for one in printed["checks"]][:3] == ["a", "b", "c"]
