"""A lean build leaves scaled_mm_c2x.cu out, and the dispatcher is whole without it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patches.conftest import PatchedBuild
from tests.patches.device_code import DeviceCompiler
from tests.patches.upstream_cmake import UpstreamCMake

pytestmark = [pytest.mark.sources, pytest.mark.compiles]

NAMES = ["lean-gb10-externals", "drop-scaled-mm-c2x"]
SOURCE = "csrc/quantization/w8a8/cutlass/scaled_mm_c2x.cu"
ENTRY = "csrc/quantization/w8a8/cutlass/scaled_mm_entry.cu"


@pytest.mark.parametrize("version", ["0.16.0", "0.33.0"])
def test_only_a_lean_build_leaves_it_out(
    version: str, vllm_tree: Callable[[str], Path], patched_build: PatchedBuild, upstream_cmake: UpstreamCMake
) -> None:
    stock = upstream_cmake.configure(vllm_tree(version), "12.1a")
    assert SOURCE in stock.sources
    assert "ENABLE_SCALED_MM_C2X" in stock.defines
    tree = patched_build(version, NAMES)
    full = upstream_cmake.configure(tree, "12.1a")
    assert (full.code, full.sources, full.defines) == (stock.code, stock.sources, stock.defines)
    lean = upstream_cmake.configure(tree, "12.1a", lean=True)
    assert stock.sources - lean.sources == {SOURCE}
    assert stock.defines - lean.defines == {"ENABLE_SCALED_MM_C2X"}


@pytest.mark.parametrize("version", ["0.16.0", "0.33.0"])
def test_on_12_x_only_int8_with_zero_points_comes_past_the_sm120_kernels(
    version: str, vllm_tree: Callable[[str], Path]
) -> None:
    entry = (vllm_tree(version) / ENTRY).read_text()
    guard = "#if defined ENABLE_SCALED_MM_C2X && ENABLE_SCALED_MM_C2X"
    assert entry.count(guard) == 2
    first = entry[: entry.index(guard)]
    sm120 = first[first.rindex("version_num >= 120)") :]
    assert sm120.index("cutlass_scaled_mm_sm120(") < sm120.index("return;") < sm120.index("#endif")
    second = entry[entry.index(guard) + len(guard) :]
    assert second.index("void cutlass_scaled_mm_azp(") < second.index(guard)
    assert "No compiled cutlass_scaled_mm_azp" in second[second.index(guard) :]


def test_without_it_the_dispatcher_needs_nothing_of_it(
    vllm_tree: Callable[[str], Path], device_compiler: DeviceCompiler
) -> None:
    csrc = vllm_tree("0.33.0") / "csrc"

    def needed(*flags: str) -> set[str]:
        symbols = device_compiler.undefined_symbols(csrc.parent / ENTRY, "121a", include=[csrc], flags=flags)
        return {name for name in symbols if "cutlass_scaled_mm" in name}

    with_it, without_it = needed("-DENABLE_SCALED_MM_C2X=1"), needed()
    assert any("sm89" in name for name in with_it)
    assert {name for name in with_it if "sm120" in name} == without_it
