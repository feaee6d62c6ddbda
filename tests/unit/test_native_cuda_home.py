"""A CUDA prefix becomes a CUDA_HOME; the driver stub knows every function that cuda.h declares."""

from pathlib import Path

import pytest

from sparkwright.errors import ConfigurationError
from sparkwright.native.cuda_home import compose, driver_functions

HEADER = """
#define cuMemAlloc                          cuMemAlloc_v2
    #define cuMemcpy                        __CUDA_API_PTDS(cuMemcpy)
    #define cuStreamSync                    __CUDA_API_PTSZ(cuStreamSync)
#define CUDA_VERSION 13000
CUresult CUDAAPI cuMemAlloc(CUdeviceptr *dptr, size_t bytesize);
CUresult CUDAAPI cuTensorMapEncodeTiled(CUtensorMap* tensorMap);
 * New code should use ::cuGraphAddNode()
"""


def test_every_declared_name_and_its_linker_spelling_is_found() -> None:
    assert driver_functions(HEADER) == (
        "cuMemAlloc",
        "cuMemAlloc_v2",
        "cuMemcpy",
        "cuStreamSync",
        "cuTensorMapEncodeTiled",
    )


def test_compose_adds_what_the_wheels_leave_out_and_keeps_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    (tmp_path / "lib").mkdir()
    for name in ("libcudart.so.13", "libnvvm.so.4", "libnvvm.so"):
        (tmp_path / "lib" / name).write_text(name)
    for _ in range(2):
        assert compose(tmp_path) == tmp_path
        assert (tmp_path / "lib64" / "libcudart.so").read_text() == "libcudart.so.13"
        assert (tmp_path / "lib" / "libnvvm.so").read_text() == "libnvvm.so"


def test_a_prefix_without_a_compiler_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nvcc"):
        compose(tmp_path)
