"""nvfp4-support-requires-kernel: the answer follows the kernels that were compiled."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.patches.upstream_code import patched_files, run_cpp

pytestmark = pytest.mark.sources

ENTRY = "csrc/quantization/fp4/nvfp4_scaled_mm_entry.cu"
CAPABILITIES = (90, 100, 103, 120, 121, 130)


def _supported(tree: Path, scratch: Path, kernels: Sequence[str], cuda: int = 13000) -> set[int]:
    """Compile the real function as a build with these kernels would, and ask it."""
    text = (tree / ENTRY).read_text(encoding="utf-8")
    function = re.search(r"^bool cutlass_scaled_mm_supports_fp4\(.*?^\}\n", text, re.DOTALL | re.MULTILINE)
    assert function
    program = f"""
        #include <cstdint>
        #include <cstdio>
        #include <initializer_list>
        {"".join(f"#define ENABLE_NVFP4_{kernel} 1{chr(10)}" for kernel in kernels)}
        static void cudaRuntimeGetVersion(int* version) {{ *version = {cuda}; }}
        {function[0]}
        int main() {{
          for (int capability : {{{", ".join(map(str, CAPABILITIES))}}})
            if (cutlass_scaled_mm_supports_fp4(capability)) std::printf("%d\\n", capability);
        }}
    """
    return {int(line) for line in run_cpp(program, scratch).split()}


@pytest.mark.parametrize("version", ["0.16.0", "0.19.1"])
def test_support_is_reported_for_compiled_kernels_only(
    version: str,
    vllm_tree: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    before = vllm_tree(version)
    assert 121 in _supported(before, tmp_path, [])
    assert 121 in _supported(before, tmp_path, ["SM100"])

    after = patched_files(before, version, "nvfp4-support-requires-kernel", tmp_path / "after")
    assert _supported(after, tmp_path, []) == set()
    assert _supported(after, tmp_path, ["SM100"]) == {100, 103}
    assert _supported(after, tmp_path, ["SM120"]) == {120, 121}
    assert _supported(after, tmp_path, ["SM100", "SM120"]) == {100, 103, 120, 121}
    assert _supported(after, tmp_path, ["SM100", "SM120"], cuda=12070) == set()


def test_the_mended_release_answers_alike(vllm_tree: Callable[[str], Path], tmp_path: Path) -> None:
    assert _supported(vllm_tree("0.33.0"), tmp_path, ["SM120"]) == {120, 121}
