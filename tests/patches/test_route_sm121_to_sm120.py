"""route-sm121-to-sm120: the dispatchers take 12.1, and no exact check for 12.0 goes unseen."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.patches.upstream_code import run_cpp

from sparkwright.patching.model import Status
from sparkwright.patching.plan import Finding, examine_series
from sparkwright.patching.series import load_series, select
from sparkwright.patching.tree import DirectoryTree, OverlayTree

pytestmark = pytest.mark.sources

NAME = "route-sm121-to-sm120"

MARLIN_PYTHON = "vllm/model_executor/layers/quantization/utils/marlin_utils.py"
MARLIN_CSRC = ("csrc/moe/marlin_moe_wna16/ops.cu", "csrc/quantization/marlin/marlin.cu")
COMMON = "csrc/cutlass_extensions/common.hpp"
EXACT = {
    "0.16.0": {MARLIN_PYTHON, *MARLIN_CSRC, COMMON},
    "0.24.0": {"csrc/libtorch_stable/cutlass_extensions/common.hpp"},
    "0.26.0": {
        "csrc/libtorch_stable/cutlass_extensions/common.hpp",
        "vllm/model_executor/warmup/fa4_cutedsl_config.py",
    },
    "0.33.0": {
        "vllm/models/minimax_m3/common/ops/index_topk.py",
        "vllm/models/qwen4_exp/nvidia/ops/qsa.py",
        "vllm/v1/attention/backends/triton_attn.py",
    },
}
"""Every file with an exact check for 12.0 that does not name 12.1 too: the list of the patch's docstring."""

MENTION = re.compile(r"\b120\b|\b12,\s*0\b")
CSRC_CHECK = re.compile(r"== ?120\b|__CUDA_ARCH__ == 1200\b(?![^#]*\n[^#]*1210)")


def _is_12_0(node: ast.expr) -> bool:
    return ast.unparse(node) in ("120", "(12, 0)", "DeviceCapability(12, 0)")


def _checks_12_0(tree: ast.AST) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(isinstance(one, ast.Eq | ast.NotEq) for one in node.ops):
            if any(_is_12_0(one) for one in (node.left, *node.comparators)):
                return True
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith(".is_device_capability")
            and any(_is_12_0(one) for one in node.args)
        ):
            return True
    return False


def _exact_checks(tree: Path) -> Iterator[str]:
    for file in (tree / "vllm").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if MENTION.search(text) and _checks_12_0(ast.parse(text)):
            yield str(file.relative_to(tree))
    for file in (tree / "csrc").rglob("*"):
        if file.suffix in (".cu", ".cuh", ".h", ".hpp", ".cpp") and CSRC_CHECK.search(
            file.read_text(encoding="utf-8", errors="replace")
        ):
            yield str(file.relative_to(tree))


@pytest.mark.parametrize("version", sorted(EXACT))
def test_every_exact_check_for_12_0_is_on_the_list(version: str, vllm_tree: Callable[[str], Path]) -> None:
    assert set(_exact_checks(vllm_tree(version))) == EXACT[version]


def _finding(tree: Path, version: str, changes: dict[str, bytes] | None = None) -> Finding:
    series = select(load_series("vllm"), (NAME,))
    return examine_series(series, OverlayTree(DirectoryTree(tree), dict(changes or {})), version)[0]


def _kernel(source: str, capability: int, scratch: Path) -> str:
    """Compile the real NVFP4 dispatch of a build with SM100 and SM120 kernels; which kernel runs on a capability?"""
    dispatch = re.findall(
        r"#if defined\(ENABLE_NVFP4_SM1.*?#endif\n", source.split("get_sm_version_num();")[1], re.DOTALL
    )
    assert len(dispatch) >= 2
    program = f"""
        #include <cstdio>
        #define ENABLE_NVFP4_SM100 1
        #define ENABLE_NVFP4_SM120 1
        static void cutlass_scaled_fp4_mm_sm100a(int, int, int, int, int, int) {{ std::puts("sm100"); }}
        static void cutlass_scaled_fp4_mm_sm120a(int, int, int, int, int, int) {{ std::puts("sm120"); }}
        int main() {{ [](int sm, int D, int A, int B, int A_sf, int B_sf, int alpha) {{
          {dispatch[0]}
          {dispatch[1]}
          std::puts("none");
        }}({capability}, 0, 0, 0, 0, 0, 0); }}
    """
    return run_cpp(program, scratch).strip()


@pytest.mark.parametrize(
    ("version", "csrc"), [("0.16.0", "csrc"), ("0.24.0", "csrc/libtorch_stable"), ("0.33.0", "csrc")]
)
def test_the_dispatcher_routes_12_1_and_an_exact_one_is_reported(
    version: str, csrc: str, vllm_tree: Callable[[str], Path], tmp_path: Path
) -> None:
    tree = vllm_tree(version)
    path = f"{csrc}/quantization/fp4/nvfp4_scaled_mm_entry.cu"
    source = (tree / path).read_text(encoding="utf-8")
    assert _kernel(source, 121, tmp_path) == "sm120"
    assert _finding(tree, version).status is Status.UPSTREAM

    exact = source.replace("if (sm >= 120 && sm < 130)", "if (sm == 120)")
    assert _kernel(exact, 120, tmp_path) == "sm120"
    assert _kernel(exact, 121, tmp_path) == "none"
    found = _finding(tree, version, {path: exact.encode()})
    assert found.status is Status.DRIFTED
    assert path in found.reason
