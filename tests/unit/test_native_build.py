"""Parts of the host build that need neither a compiler nor a network."""

import os
from pathlib import Path

import pytest

from sparkwright.errors import ConfigurationError, OutputError, UnavailableError, UsageError
from sparkwright.native import compiler, preflight
from sparkwright.native.configure import configuration
from sparkwright.native.environment import BuildEnvironment, requirements_of
from sparkwright.native.host import build, plan
from sparkwright.native.layout import Layout
from sparkwright.native.units import unit
from sparkwright.native.wheel import PARTS, select
from sparkwright.pins import load_line


@pytest.fixture
def environment(tmp_path: Path) -> BuildEnvironment:
    return BuildEnvironment(prefix=tmp_path / "env", lock="0" * 64)


def test_flags_that_reach_nvcc_behind_the_builds_back_are_left_out(
    environment: BuildEnvironment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-arch=sm_121")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    monkeypatch.setenv("CCACHE_MAXSIZE", "9G")
    variables = environment.variables({"TORCH_CUDA_ARCH_LIST": "12.1a"})
    assert "NVCC_APPEND_FLAGS" not in variables
    assert variables["TORCH_CUDA_ARCH_LIST"] == "12.1a"
    assert variables["CCACHE_MAXSIZE"] == "9G"
    assert variables["PATH"].split(os.pathsep)[0] == str(environment.cuda_home / "bin")
    preflight.report_ignored_options()
    assert "NVCC_APPEND_FLAGS" in capsys.readouterr().err


def test_a_path_that_vllms_scripts_would_split_is_refused(environment: BuildEnvironment, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="with space"):
        configuration(
            line=load_line("0.33.0"),
            source=tmp_path / "with space",
            cutlass=tmp_path,
            environment=environment,
            folders=Layout(root=tmp_path),
            ccache=None,
        )


def test_cmake_is_called_again_only_when_something_changed(environment: BuildEnvironment, tmp_path: Path) -> None:
    def digest(cutlass: str) -> str:
        return configuration(
            line=load_line("0.33.0"),
            source=tmp_path,
            cutlass=tmp_path / cutlass,
            environment=environment,
            folders=Layout(root=tmp_path),
            ccache=None,
        ).digest()

    assert digest("a") == digest("a") != digest("b")


def test_a_full_disk_is_told_before_anything_starts(tmp_path: Path) -> None:
    preflight.check_space(tmp_path / "new", 1)
    with pytest.raises(OutputError, match="GB free"):
        preflight.check_space(tmp_path, 10**18)


def test_a_missing_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UnavailableError, match="no-such-compiler"):
        compiler.host_compiler()


@pytest.mark.parametrize(
    ("macros", "message"),
    [
        ("#define __GNUC__ 10\n#define __GNUC_MINOR__ 2\n", "GCC 10.2.0"),
        ("#define __GNUC__ 16\n#define __GNUC_MINOR__ 1\n", "GCC 16.1.0"),
        ("#define __GNUC__ 4\n#define __clang__ 1\n", "clang"),
    ],
)
def test_a_compiler_that_does_not_suit_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, macros: str, message: str
) -> None:
    fake = tmp_path / "cxx"
    fake.write_text(f"#!/bin/sh\ncat <<'END'\n{macros}END\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with pytest.raises(UnavailableError, match=message):
        compiler.host_compiler()


def test_a_line_that_cannot_be_compiled_says_why() -> None:
    line = load_line("0.16.0")
    with pytest.raises(ConfigurationError, match=r"unit nvfp4 cannot be compiled for line 0\.16\.0") as caught:
        build(line, unit("nvfp4"), jobs=1)
    assert caught.value.cause == line.why
    with pytest.raises(ConfigurationError):
        requirements_of(line)


def test_the_plan_names_every_step() -> None:
    line = load_line("0.33.0")
    assert [name for name, _ in plan(line, None, jobs=1, wheel=False)] == [
        "toolchain",
        "fetch and unpack",
        "patch and verify",
    ]
    assert [name for name, _ in plan(line, unit("native"), jobs=1, wheel=True)][3:] == [
        "build environment",
        "configure",
        "compile",
        "audit",
        "wheel",
        "report",
    ]


def test_parts_are_found_in_the_official_wheel_or_their_absence_is_told() -> None:
    names = [
        "vllm/vllm_flash_attn/",
        "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so",
        "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so",
        "vllm/vllm_flash_attn/cute/__init__.py",
    ]
    assert select(PARTS[0], names) == [names[1], names[3]]
    with pytest.raises(ConfigurationError, match="_vllm_fa2_C"):
        select(PARTS[0], names[2:])
