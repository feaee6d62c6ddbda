"""The guard around the SM120 FP8 GEMMs is a trap in code for 12.1; the one they use when patched is not."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patches.conftest import PatchedBuild
from tests.patches.device_code import DeviceCompiler, count

pytestmark = [pytest.mark.sources, pytest.mark.compiles]

NAME = "fp8-sm120-family-guard"

# The guard as vLLM's header defines it, around a kernel that stores a number.
KERNEL = """
#include "cutlass_extensions/common.hpp"
struct Store {{
  CUTLASS_DEVICE void operator()(int* out) {{ *out = 121; }}
}};
__global__ void kernel(int* out) {{ {guard}<Store>{{}}(out); }}
"""


def guards(tree: Path) -> list[str]:
    """The guards of the SM120 FP8 kernels, in the files that define them."""
    found = []
    for name in ("scaled_mm.cuh", "scaled_mm_sm120_fp8_dispatch.cuh"):
        for file in sorted(tree.glob(f"csrc/**/w8a8/cutlass/c3x/{name}")):
            found += re.findall(r"using GemmKernel = (enable_sm120_\w+)<", file.read_text())
    return found


@pytest.mark.parametrize(("version", "uses"), [("0.16.0", 1), ("0.19.1", 2), ("0.21.0", 2)])
def test_the_kernels_trap_on_12_1_and_then_they_run(
    version: str,
    uses: int,
    vllm_tree: Callable[[str], Path],
    patched_build: PatchedBuild,
    device_compiler: DeviceCompiler,
    tmp_path: Path,
) -> None:
    def sass(guard: str, target: str) -> str:
        source = tmp_path / f"{guard}.cu"
        source.write_text(KERNEL.format(guard=guard))
        return device_compiler.sass(source, target, include=[vllm_tree(version) / "csrc"])

    stock, mended = guards(vllm_tree(version)), guards(patched_build(version, [NAME]))
    assert len(stock) == len(mended) == uses
    for guard in set(stock):
        assert count(sass(guard, "120f"), "ST") == 1
        assert (count(sass(guard, "121a"), "ST"), count(sass(guard, "121a"), "BPT.TRAP")) == (0, 1)
    for guard in set(mended):
        for target in ("120f", "121a"):
            assert (count(sass(guard, target), "ST"), count(sass(guard, target), "BPT.TRAP")) == (1, 0)
