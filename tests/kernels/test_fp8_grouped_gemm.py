"""What kernels/fp8_grouped_gemm/README.md says of CUTLASS and of vLLM."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.kernels.build import KERNELS

from sparkwright.audit import audit
from sparkwright.errors import CommandFailedError
from sparkwright.native.compiler import host_compiler
from sparkwright.native.source import cutlass_headers
from sparkwright.pins import default_line, load_line
from sparkwright.run import run

pytestmark = [pytest.mark.sources, pytest.mark.compiles]

FOLDER = KERNELS / "fp8_grouped_gemm"


@pytest.fixture(scope="module")
def cutlass() -> Path:
    return cutlass_headers(load_line(default_line()))


def compile_for_gb10(cuda_home: Path, cutlass: Path, target: Path, *options: str) -> None:
    include: list[str | Path] = ["-isystem", cutlass / "include", "-isystem", cutlass / "tools" / "util" / "include"]
    nvcc: list[str | Path] = [
        cuda_home / "bin" / "nvcc",
        "-ccbin",
        host_compiler().path,
        "-std=c++17",
        "-O2",
        "-DNDEBUG",
    ]
    target_options: list[str | Path] = [
        "-gencode=arch=compute_121a,code=sm_121a",
        "--expt-relaxed-constexpr",
        "-cubin",
        "-o",
        target,
    ]
    run([*nvcc, *options, *include, *target_options, FOLDER / "fp8_grouped_gemm.cu"])


def test_without_block_scales_the_builder_refuses(cuda_home: Path, cutlass: Path, tmp_path: Path) -> None:
    with pytest.raises(CommandFailedError, match="PtrArray kernel is not supported for this collective builder"):
        compile_for_gb10(cuda_home, cutlass, tmp_path / "refused.cubin", "-DWITHOUT_BLOCK_SCALES")


def test_with_block_scales_two_configurations_fit_into_99_kb(cuda_home: Path, cutlass: Path, tmp_path: Path) -> None:
    # The compiler is made to name a type that carries the numbers.
    with pytest.raises(CommandFailedError) as caught:
        compile_for_gb10(cuda_home, cutlass, tmp_path / "report.cubin", "-DREPORT")
    found = re.findall(r'incomplete type "sparkwright::Is<(\d+), (\d+)>"', str(caught.value))
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    recorded = re.findall(r"^\| \d+ x 128 x 128 \| .* \| (\d) \| ([\d,]+) \|$", readme, re.MULTILINE)
    assert found == [(size.replace(",", ""), stages) for stages, size in recorded]
    assert len(found) == 2


@pytest.mark.long
def test_it_compiles_to_fp8_tensor_core_instructions(cuda_home: Path, cutlass: Path, tmp_path: Path) -> None:
    compile_for_gb10(cuda_home, cutlass, tmp_path / "kernel.cubin")
    sass = run([cuda_home / "bin" / "cuobjdump", "-sass", tmp_path / "kernel.cubin"])
    assert "QMMA.16832.F32.E4M3.E4M3" in sass
    assert "UTMALDG" in sass
    found = audit(tmp_path / "kernel.cubin").totals()
    said = " ".join((FOLDER / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"{found.kernels} kernels, {found.fp8_mma} FP8 mma, at most {found.max_registers} registers, "
        f"{found.spilling_kernels} kernels with local memory and {found.wrong_target_traps} traps"
    ) in said


def test_vllm_has_the_others_and_not_this_one(vllm_tree: Callable[[str], Path]) -> None:
    tree = vllm_tree("0.33.0")
    cmake = (tree / "CMakeLists.txt").read_text(encoding="utf-8")
    for file in (
        "csrc/quantization/w8a8/cutlass/c3x/scaled_mm_sm120_fp8.cu",
        "csrc/quantization/w8a8/cutlass/c3x/scaled_mm_blockwise_sm120_fp8.cu",
        "csrc/quantization/fp4/nvfp4_blockwise_moe_kernel.cu",
        "csrc/quantization/fp4/nvfp4_scaled_mm_sm120_kernels.cu",
    ):
        assert (tree / file).is_file()
        assert f'"{file}"' in cmake
    grouped = {path.name for path in (tree / "csrc/quantization/w8a8/cutlass/moe").glob("grouped_mm_c3x_*.cu")}
    assert grouped == {"grouped_mm_c3x_sm90.cu", "grouped_mm_c3x_sm100.cu"}
