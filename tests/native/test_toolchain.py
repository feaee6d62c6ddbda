"""The toolchain that is composed from pinned wheels compiles for GB10 and reads what it compiled."""

from pathlib import Path

import pytest

from sparkwright.native.compiler import host_compiler
from sparkwright.native.cuda_home import add_driver_stub
from sparkwright.native.toolchain import toolchain
from sparkwright.run import run

pytestmark = pytest.mark.compiles

KERNEL = """
#include <cuda_fp4.h>
__global__ void convert(__nv_fp4x2_storage_t* out, float2 in) {
  *out = __nv_cvt_float2_to_fp4x2(in, __NV_E2M1, cudaRoundNearest);
}
"""


@pytest.fixture(scope="module")
def cuda_home() -> Path:
    return toolchain()


def compile_kernel(cuda_home: Path, folder: Path, arch: str) -> str:
    source, cubin = folder / "convert.cu", folder / f"convert_{arch}.cubin"
    source.write_text(KERNEL)
    run([cuda_home / "bin" / "nvcc", f"-arch=sm_{arch}", "-cubin", "-o", cubin, source])
    return run([cuda_home / "bin" / "cuobjdump", "-sass", cubin])


def test_code_for_gb10_is_compiled_and_disassembled(cuda_home: Path, tmp_path: Path) -> None:
    assert "F2FP.SATFINITE.E2M1" in compile_kernel(cuda_home, tmp_path, "121a")


def test_the_plain_target_has_no_native_conversion(cuda_home: Path, tmp_path: Path) -> None:
    assert "E2M1" not in compile_kernel(cuda_home, tmp_path, "121")


def test_a_second_call_returns_the_same_folder_without_network(cuda_home: Path) -> None:
    assert toolchain(offline=True) == cuda_home


def test_linking_against_the_driver_stub_leaves_the_driver_among_the_needed_libraries(
    cuda_home: Path, tmp_path: Path
) -> None:
    prefix = tmp_path / "prefix"
    (prefix / "lib").mkdir(parents=True)
    (prefix / "include").symlink_to(cuda_home / "include")
    compiler = host_compiler()
    stub = add_driver_stub(prefix, compiler)
    source, module = tmp_path / "module.cpp", tmp_path / "module.so"
    source.write_text("#include <cuda.h>\nCUresult f(void** p) { return cuMemAddressFree((CUdeviceptr)p, 1); }\n")
    run([compiler.path, "-shared", "-fPIC", "-I", prefix / "include", "-o", module, source, "-Wl,--as-needed", stub])
    assert "libcuda.so.1" in run(["readelf", "-d", module])
