"""The check of a CUDA toolkit: the pinned one passes; what has been shipped for the DGX Spark does not."""

import re
import shutil
from pathlib import Path

import pytest

from sparkwright.errors import CommandFailedError
from sparkwright.patching.model import Status
from sparkwright.patching.series import load_series
from sparkwright.patching.shell import ShellPatch
from sparkwright.run import run

pytestmark = pytest.mark.compiles

(PATCH,) = (named.patch for named in load_series("cuda") if named.name == "check-cuda-fp4-headers")
assert isinstance(PATCH, ShellPatch)
CHECK = PATCH

HOME_MADE = "#pragma once\nstruct __nv_fp4_e2m1 { unsigned char code; };\n"
SEES_FP4 = "#include <cuda/std/__cccl/extended_data_types.h>\n#if _CCCL_HAS_NVFP4()\nSEEN\n#endif\n"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def toolkit(cuda_home: Path, tmp_path: Path) -> Path:
    """A copy of the toolkit's headers that a test may damage, beside the toolkit's own programs."""
    home = tmp_path / "cuda"
    home.mkdir()
    for entry in cuda_home.iterdir():
        if entry.name == "include":
            shutil.copytree(entry, home / "include", symlinks=True)
        else:
            (home / entry.name).symlink_to(entry)
    return home


def drift(home: Path) -> str:
    """Why the check finds the toolkit drifted; `apply` must refuse it for the same reason."""
    status, reason = CHECK.check(home)
    assert status is Status.DRIFTED
    with pytest.raises(CommandFailedError) as refused:
        run([CHECK.script, "apply", home])
    assert reason in refused.value.what
    run([CHECK.script, "revert", home])
    return reason


def cccl_sees_fp4(home: Path, scratch: Path, *flags: str) -> bool:
    source, include = scratch / "sees.cu", home / "include"
    source.write_text(SEES_FP4)
    return "SEEN" in run(
        [home / "bin" / "nvcc", "-E", "-isystem", include / "cccl", "-isystem", include, *flags, source]
    )


def test_the_pinned_toolkit_is_as_nvidia_made_it(cuda_home: Path, tmp_path: Path) -> None:
    assert CHECK.check(cuda_home)[0] is Status.UPSTREAM
    run([CHECK.script, "apply", cuda_home])
    run([CHECK.script, "revert", cuda_home])
    assert cccl_sees_fp4(cuda_home, tmp_path)


@pytest.mark.parametrize("name", ["cuda_fp4.h", "cuda_fp4.hpp"])
def test_a_missing_header(name: str, toolkit: Path) -> None:
    (toolkit / "include" / name).unlink()
    assert "is missing" in drift(toolkit)


def test_a_home_made_header_in_its_place(toolkit: Path) -> None:
    (toolkit / "include" / "cuda_fp4.h").write_text(HOME_MADE)
    assert "is not the one of CUDA 13.0" in drift(toolkit)


def test_a_toolkit_too_old_for_the_header(toolkit: Path) -> None:
    version = toolkit / "include" / "cuda_runtime_api.h"
    version.write_text(version.read_text().replace("#define CUDART_VERSION  13000", "#define CUDART_VERSION  12060"))
    assert "CUDA 12.6 has no cuda_fp4.h" in drift(toolkit)


def test_a_header_that_comes_first_inside_the_toolkit(toolkit: Path) -> None:
    (toolkit / "include" / "cccl" / "cuda_fp4.h").write_text(HOME_MADE)
    assert "comes before the toolkit" in drift(toolkit)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("CPATH", "/nowhere:{folder}"), ("CPLUS_INCLUDE_PATH", "{folder}"), ("NVCC_APPEND_FLAGS", "-O2 -I {folder}")],
)
def test_a_header_that_comes_first_from_outside(
    variable: str, value: str, cuda_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value.format(folder=tmp_path))
    assert CHECK.check(cuda_home)[0] is Status.UPSTREAM
    (tmp_path / "cuda_fp4.h").write_text(HOME_MADE)
    assert f"{tmp_path}/cuda_fp4.h comes before the toolkit" in drift(cuda_home)


def test_cccl_that_does_not_look_for_it(toolkit: Path, tmp_path: Path) -> None:
    types = toolkit / "include" / "cccl" / "cuda" / "std" / "__cccl" / "extended_data_types.h"
    types.write_text(types.read_text().replace("_CCCL_HAS_INCLUDE(<cuda_fp4.h>)", "0"))
    assert "CCCL below include/cccl does not look for cuda_fp4.h" in drift(toolkit)
    assert not cccl_sees_fp4(toolkit, tmp_path)


@pytest.mark.parametrize(
    "flags",
    ["-arch=sm_121a", "-O3 -arch sm_121a", "-gencode arch=compute_121,code=sm_121", "--gpu-architecture=sm_121"],
)
@pytest.mark.parametrize("variable", ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"])
def test_a_target_in_the_environment(
    variable: str, flags: str, cuda_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "-O2 --threads=2")
    assert CHECK.check(cuda_home)[0] is Status.UPSTREAM
    monkeypatch.setenv(variable, flags)
    assert f"{variable} holds -" in drift(cuda_home)


def test_a_flag_that_hides_it_from_cccl(cuda_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hiding = "-DCCCL_DISABLE_NVFP4_SUPPORT"
    assert not cccl_sees_fp4(cuda_home, tmp_path, hiding)
    monkeypatch.setenv("NVCC_PREPEND_FLAGS", hiding)
    assert "hides cuda_fp4.h from CCCL" in drift(cuda_home)


def test_such_a_target_adds_plain_code_that_nobody_asked_for(
    cuda_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text("__global__ void kernel() {}\n")

    def targets() -> set[str]:
        nvcc = f"{cuda_home}/bin/nvcc --dryrun -c -gencode=arch=compute_121a,code=sm_121a {source} 2>&1"
        return set(re.findall(r"-arch (compute_\w+)", run(["sh", "-c", nvcc])))

    assert targets() == {"compute_121a"}
    monkeypatch.setenv("NVCC_PREPEND_FLAGS", "-arch=sm_121a")
    assert targets() == {"compute_121a", "compute_121"}


def test_a_folder_that_is_no_toolkit_is_refused(tmp_path: Path) -> None:
    assert "install the whole toolkit" in drift(tmp_path)
    with pytest.raises(CommandFailedError, match="is not a folder"):
        run([CHECK.script, "check", tmp_path / "nowhere"])
