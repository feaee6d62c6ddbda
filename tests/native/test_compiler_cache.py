"""The compiler cache: what one checkout has compiled, a checkout in another folder takes from it."""

import os
import shlex
from pathlib import Path

import pytest

from sparkwright.native import configure
from sparkwright.native.compile import Measurement, read_measurements
from sparkwright.native.configure import Configuration, configuration, find_ccache
from sparkwright.native.environment import BuildEnvironment
from sparkwright.native.layout import Layout
from sparkwright.pins import load_line
from sparkwright.run import run

pytestmark = pytest.mark.compiles

KERNEL = '#include "value.h"\n__global__ void kernel(int* out) { *out = VALUE; }\n'
OBJECT = "kernel.cu.o"


@pytest.fixture
def ccache() -> Path:
    found = find_ccache()
    if found is None and not os.environ.get("CI"):
        pytest.skip("ccache is not installed")
    assert found, "CI installs ccache"
    return found


def launcher(how: Configuration) -> list[str]:
    """What CMake is told to start each compiler call with."""
    (wanted,) = (one for one in how.arguments if one.startswith("-DCMAKE_CUDA_COMPILER_LAUNCHER="))
    return wanted.partition("=")[2].split(";")


def compile_in(
    checkout: Path, *, value: int, nvcc: Path, ccache: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Measurement, bytes]:
    """Compile a kernel in a build folder of a checkout, as CMake writes such a call."""
    monkeypatch.setattr(configure, "CHECKOUT", checkout)
    folders = Layout(root=checkout / "build" / "line")
    folders.native.mkdir(parents=True)
    (folders.vllm / "include").mkdir(parents=True)
    (folders.vllm / "include" / "value.h").write_text(f"#define VALUE {value}\n")
    (folders.vllm / "kernel.cu").write_text(KERNEL)
    how = configuration(
        line=load_line("0.33.0"),
        source=folders.vllm,
        cutlass=checkout,
        environment=BuildEnvironment(prefix=checkout.parent / "env", lock="0" * 64),
        folders=folders,
        ccache=ccache,
    )
    flags = f"-O2 -DNDEBUG -std=c++20 -Xcompiler=-fPIC -gencode arch=compute_121a,code=sm_121a -I{folders.vllm}/include"
    depends = f"-MD -MT {OBJECT} -MF {OBJECT}.d -x cu -c {folders.vllm}/kernel.cu -o {OBJECT}"
    run([*launcher(how), nvcc, *shlex.split(flags), *shlex.split(depends)], cwd=folders.native, env=how.variables)
    return read_measurements(folders.measurements)[OBJECT], (folders.native / OBJECT).read_bytes()


def test_a_checkout_in_another_folder_compiles_nothing_again(
    tmp_path: Path, cuda_home: Path, ccache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CCACHE_DIR", str(tmp_path / "ccache"))
    nvcc = cuda_home / "bin" / "nvcc"

    def compiled(name: str, value: int) -> tuple[Measurement, bytes]:
        return compile_in(tmp_path / name, value=value, nvcc=nvcc, ccache=ccache, monkeypatch=monkeypatch)

    first, code = compiled("here", 1)
    assert first.cache == "miss"
    again, same_code = compiled("elsewhere", 1)
    assert again.cache == "hit"
    assert same_code == code
    other, other_code = compiled("with-another-header", 2)
    assert other.cache == "miss"
    assert other_code != code
