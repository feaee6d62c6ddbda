"""Marlin's helper files are built as sm_80 and PTX; patched, as GB10's own machine code, and they compile for it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patches.conftest import PatchedBuild
from tests.patches.device_code import DeviceCompiler
from tests.patches.upstream_cmake import UpstreamCMake

pytestmark = [pytest.mark.sources, pytest.mark.compiles]

NAME = "marlin-repack-sm12x"
HELPERS = {
    "csrc/quantization/marlin/marlin.cu",
    "csrc/quantization/marlin/marlin_int4_fp8_preprocess.cu",
    "csrc/quantization/marlin/gptq_marlin_repack.cu",
    "csrc/quantization/marlin/awq_marlin_repack.cu",
    "csrc/moe/marlin_moe_wna16/ops.cu",
}


@pytest.mark.parametrize("version", ["0.16.0", "0.33.0"])
@pytest.mark.parametrize(
    ("archs", "cuda", "made"),
    [
        ("12.1a", "13.0.88", {"sm_120f"}),
        ("12.0f", "13.0.88", {"sm_120f"}),
        ("12.0", "12.9.86", {"sm_120a"}),
        ("9.0;12.0", "13.0.88", {"sm_80", "compute_80", "sm_120f"}),
        ("9.0", "13.0.88", {"sm_80", "compute_80"}),
    ],
)
def test_the_helper_files_and_only_they_get_code_for_sm12x(
    version: str,
    archs: str,
    cuda: str,
    made: set[str],
    vllm_tree: Callable[[str], Path],
    patched_build: PatchedBuild,
    upstream_cmake: UpstreamCMake,
) -> None:
    stock = upstream_cmake.configure(vllm_tree(version), archs, cuda=cuda)
    mended = upstream_cmake.configure(patched_build(version, [NAME]), archs, cuda=cuda)
    assert {source for source in stock.code if stock.code[source] == {"sm_80", "compute_80"}} == HELPERS
    assert {source: mended.code[source] for source in HELPERS} == dict.fromkeys(HELPERS, made)
    assert mended.code == stock.code | {source: mended.code[source] for source in HELPERS}


def test_with_native_sm121a_code_they_are_sm_121a(patched_build: PatchedBuild, upstream_cmake: UpstreamCMake) -> None:
    tree = patched_build("0.33.0", [NAME, "native-sm121a-code", "refuse-plain-sm12x"])
    mended = upstream_cmake.configure(tree, "12.1a")
    assert {source: mended.code[source] for source in HELPERS} == {source: {"sm_121a"} for source in HELPERS}


@pytest.mark.parametrize("name", ["gptq_marlin_repack.cu", "awq_marlin_repack.cu"])
def test_the_repack_kernels_compile_for_sm_121a(
    name: str, vllm_tree: Callable[[str], Path], device_compiler: DeviceCompiler
) -> None:
    csrc = vllm_tree("0.33.0") / "csrc"
    sass = device_compiler.sass(csrc / "quantization/marlin" / name, "121a", include=[csrc])
    assert "repack" in sass
    assert "EXIT" in sass
