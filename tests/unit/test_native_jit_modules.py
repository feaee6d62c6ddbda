"""The list of FlashInfer modules, and the order in which they are compiled."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparkwright.audit import Requirement
from sparkwright.cli import app
from sparkwright.errors import ConfigurationError, UsageError
from sparkwright.native import jit_modules
from sparkwright.native.jit_build import SMALL_MB, waves
from sparkwright.native.jit_modules import built, choose, load_modules
from sparkwright.native.jobs import job_count
from sparkwright.pins import load_line

LINE = load_line("0.33.0")
MODULES = load_modules(LINE)


def test_the_two_that_exhaust_a_spark_come_first() -> None:
    assert [module.name for module in MODULES.modules][:2] == ["fused_moe_120", "fp4_gemm_cutlass_sm120"]


def test_every_module_says_why_and_must_run_on_121() -> None:
    for module in MODULES.modules:
        assert Requirement.SM121 in module.require
        assert "vllm/" in module.asked_by
    by_name = {module.name: module for module in MODULES.modules}
    assert len(by_name) == len(MODULES.modules)
    assert Requirement.FP4_MMA in by_name["fused_moe_120"].require
    assert Requirement.E2M1_CONVERT in by_name["fp4_quantization_120f"].require


def test_the_small_ones_are_compiled_together_before_the_large_ones() -> None:
    small, large = waves(MODULES.modules)
    assert max(module.peak_mb for module in small) <= SMALL_MB < min(module.peak_mb for module in large)
    assert len(small) + len(large) == len(MODULES.modules)
    assert waves([]) == []


def test_memory_decides_how_many_compilers_run() -> None:
    spark = {"available": 110_000_000_000, "cores": 20}
    assert job_count(**spark, peak=9_500_000_000) == 11
    assert job_count(**spark, peak=1_300_000_000) == 20
    assert job_count(available=4_000_000_000, cores=20, peak=9_500_000_000) == 1


def test_modules_are_chosen_by_name() -> None:
    assert [module.name for module in choose(MODULES, ("norm", "topk"))] == ["norm", "topk"]
    assert choose(MODULES, ()) == MODULES.modules
    with pytest.raises(UsageError, match="not listed: fused_moe_121"):
        choose(MODULES, ("fused_moe_121",))


def test_a_list_for_another_flashinfer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (jit_modules.DATA / "jit-modules-0.33.0.toml").read_text()
    (tmp_path / "jit-modules-0.33.0.toml").write_text(
        text.replace('flashinfer = "0.7.2.post1"', 'flashinfer = "0.7.1"')
    )
    monkeypatch.setattr(jit_modules, "DATA", tmp_path)
    with pytest.raises(ConfigurationError, match=r"names the modules of FlashInfer 0\.7\.1"):
        load_modules(LINE)


def test_a_line_without_a_list_says_so() -> None:
    with pytest.raises(ConfigurationError, match="no FlashInfer modules are listed"):
        load_modules(load_line("0.16.0"))


def test_only_what_flashinfer_would_load_counts_as_built(tmp_path: Path) -> None:
    for path in ("norm/norm.so", "norm/norm.cuda.o", "page/other.so", "stray.so"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    assert [one.name for one in built(tmp_path)] == ["norm"]
    assert built(tmp_path / "absent") == ()


def test_the_command_lists_them() -> None:
    shown = CliRunner().invoke(app, ["jit-cache", "list"])
    assert shown.exit_code == 0
    assert "fp4_quantization_120f" in shown.stdout
    answer = json.loads(CliRunner().invoke(app, ["jit-cache", "list", "--json"]).stdout)
    assert [one["name"] for one in answer] == [module.name for module in MODULES.modules]
