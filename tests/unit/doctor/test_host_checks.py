"""Judgements about the machine, from the files of /proc and /sys that were seen on Sparks and elsewhere."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.unit.doctor.conftest import MakeMachine

from sparkwright.doctor import host_checks
from sparkwright.doctor.model import Verdict

GIB = 1024 * 1024  # in the kB of /proc/meminfo
NVIDIA_6_17 = "6.17.0-1032-nvidia\n"
NVIDIA_7_0 = "7.0.0-1019-nvidia\n"


def meminfo(**gib: float) -> dict[str, str]:
    return {"proc/meminfo": "".join(f"{name}:  {int(size * GIB)} kB\n" for name, size in gib.items())}


def test_a_spark_is_arm(machine: MakeMachine) -> None:
    assert host_checks.architecture(machine()).verdict is Verdict.PASS
    assert host_checks.architecture(machine(architecture="x86_64")).verdict is Verdict.WARN


@pytest.mark.parametrize(("available", "verdict"), [(110, Verdict.PASS), (8.1, Verdict.PASS), (7.9, Verdict.WARN)])
def test_a_spark_needs_eight_gib_beside_the_model(machine: MakeMachine, available: float, verdict: Verdict) -> None:
    result = host_checks.memory(machine(meminfo(MemTotal=119.6, MemAvailable=available, MemFree=1)))
    assert result.verdict is verdict
    assert "of 119.6 GiB" in result.found


def test_memory_that_files_occupy_is_told_when_it_hurts(machine: MakeMachine) -> None:
    full = machine(meminfo(MemTotal=120, MemFree=5, Cached=90))
    result = host_checks.page_cache(full)
    assert result.verdict is Verdict.WARN
    assert "drop_caches" in result.remedy
    assert host_checks.page_cache(machine(meminfo(MemTotal=120, MemFree=60, Cached=40))).verdict is Verdict.PASS


def test_swap_in_use_is_told(machine: MakeMachine) -> None:
    assert host_checks.swap(machine(meminfo(SwapTotal=16, SwapFree=3))).verdict is Verdict.WARN
    assert host_checks.swap(machine(meminfo(SwapTotal=16, SwapFree=16))).verdict is Verdict.PASS
    assert host_checks.swap(machine(meminfo(SwapTotal=0, SwapFree=0))).found == "none"


def test_more_free_contiguous_memory_than_there_is_betrays_the_fault(machine: MakeMachine) -> None:
    result = host_checks.contiguous_memory(machine(meminfo(CmaTotal=0.06, CmaFree=9.3)))
    assert result.verdict is Verdict.FAIL
    assert "kho=off" in result.remedy
    assert host_checks.contiguous_memory(machine(meminfo(CmaTotal=0.5, CmaFree=0.2))).verdict is Verdict.PASS


def test_a_kernel_without_that_pool_is_no_fault(machine: MakeMachine) -> None:
    assert host_checks.contiguous_memory(machine(meminfo(MemTotal=16))).verdict is Verdict.SKIPPED


@pytest.mark.parametrize(
    ("release", "command_line", "verdict"),
    [
        (NVIDIA_6_17, "quiet", Verdict.PASS),
        (NVIDIA_7_0, "quiet splash", Verdict.WARN),
        (NVIDIA_7_0, "quiet kho=off", Verdict.PASS),
        ("", "", Verdict.SKIPPED),
    ],
)
def test_the_kernel_that_breaks_rdma_is_told(
    machine: MakeMachine, release: str, command_line: str, verdict: Verdict
) -> None:
    files = {"proc/sys/kernel/osrelease": release, "proc/cmdline": command_line}
    assert host_checks.kernel(machine(files)).verdict is verdict


def test_locked_memory_matters_for_rdma_only(machine: MakeMachine) -> None:
    device = {"sys/class/infiniband/rocep1s0f0/node_type": "1"}
    assert host_checks.locked_memory(machine(memlock=8 << 20)).verdict is Verdict.PASS
    assert host_checks.locked_memory(machine(device, memlock=8 << 20)).verdict is Verdict.WARN
    assert host_checks.locked_memory(machine(device)).found == "unlimited"


def absent(name: str) -> None:
    raise OSError(name)


def test_rdma_device_its_files_and_its_libraries(machine: MakeMachine) -> None:
    device = {"sys/class/infiniband/rocep1s0f0/node_type": "1"}
    passed_in = device | {"dev/infiniband/uverbs0": ""}
    assert host_checks.rdma(machine(), loads=str).verdict is Verdict.SKIPPED
    without_files = host_checks.rdma(machine(device), loads=str)
    assert without_files.verdict is Verdict.WARN
    assert "--device /dev/infiniband" in without_files.remedy
    assert host_checks.rdma(machine(passed_in), loads=str).verdict is Verdict.PASS
    assert host_checks.rdma(machine(passed_in), loads=absent).verdict is Verdict.FAIL


def test_caches_that_cannot_be_written_are_named(machine: MakeMachine, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    assert host_checks.caches(machine()).verdict in (Verdict.PASS, Verdict.WARN)
    (tmp_path / "file").write_text("no folder can be below it")
    moved = {"HOME": str(tmp_path / "home"), "TRITON_CACHE_DIR": str(tmp_path / "file" / "triton")}
    result = host_checks.caches(machine(environment=moved))
    assert result.verdict is Verdict.FAIL
    assert "Triton" in result.found
    assert "FlashInfer" not in result.found


def test_a_clock_before_the_image_is_wrong() -> None:
    built = {"built": "2026-11-21T12:00:00+00:00"}
    assert host_checks.clock(built, datetime(1980, 1, 1, tzinfo=UTC)).verdict is Verdict.FAIL
    assert host_checks.clock(built, datetime(2027, 1, 1, tzinfo=UTC)).verdict is Verdict.PASS
    assert host_checks.clock({}).verdict is Verdict.SKIPPED
