"""The Hadamard transform is asked for as sm_90 and PTX; patched, as GB10's own machine code, and it compiles for it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patches.conftest import PatchedBuild
from tests.patches.device_code import DeviceCompiler, count
from tests.patches.upstream_cmake import UpstreamCMake

pytestmark = [pytest.mark.sources, pytest.mark.compiles]

NAME = "hadacore-sm12x"
SOURCE = "csrc/quantization/hadamard/hadacore/hadamard_transform_cuda.cu"


@pytest.mark.parametrize("version", ["0.16.0", "0.33.0"])
@pytest.mark.parametrize(
    ("archs", "made"),
    [("12.1a", {"sm_120f"}), ("9.0;12.0f", {"sm_90", "compute_90", "sm_120f"}), ("8.0", {"sm_80", "compute_80"})],
)
def test_it_gets_code_for_sm12x_and_nothing_else_changes(
    version: str,
    archs: str,
    made: set[str],
    vllm_tree: Callable[[str], Path],
    patched_build: PatchedBuild,
    upstream_cmake: UpstreamCMake,
) -> None:
    stock = upstream_cmake.configure(vllm_tree(version), archs)
    mended = upstream_cmake.configure(patched_build(version, [NAME]), archs)
    assert "sm_120f" not in stock.code[SOURCE]
    assert mended.code == stock.code | {SOURCE: frozenset(made)}


def test_it_compiles_for_sm_121a_to_the_tensor_core_code_of_sm_90(
    vllm_tree: Callable[[str], Path], device_compiler: DeviceCompiler
) -> None:
    csrc = vllm_tree("0.33.0") / "csrc"
    made = [device_compiler.sass(csrc.parent / SOURCE, target, include=[csrc]) for target in ("90", "121a")]
    tensor_core, traps = ([count(sass, name) for sass in made] for name in ("HMMA", "BPT.TRAP"))
    assert tensor_core[0] == tensor_core[1] > 0
    assert traps == [0, 0]
