"""marlin-fp8-input-sm121: FP8 activations are accepted on 12.1, in Python and in both operators."""

import contextlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.patches.upstream_code import extract, patched_files, run_cpp

from sparkwright.run import run

pytestmark = pytest.mark.sources

NAME = "marlin-fp8-input-sm121"
DENSE = "csrc/quantization/marlin/marlin.cu"
MOE = "csrc/moe/marlin_moe_wna16/ops.cu"
CAPABILITIES = (80, 89, 90, 100, 103, 110, 120, 121)
WITH_FP8_TENSOR_CORES = {89, 120, 121}


def _accepted_by_python(tree: Path) -> set[int]:
    accepted = set()
    for capability in CAPABILITIES:

        def exactly(wanted: int, own: int = capability) -> bool:
            return own == wanted

        def family(wanted: int, own: int = capability) -> bool:
            return own // 10 == wanted // 10

        function = extract(
            tree / "vllm/model_executor/layers/quantization/utils/marlin_utils.py",
            "get_marlin_input_dtype",
            envs=SimpleNamespace(VLLM_MARLIN_INPUT_DTYPE="fp8"),
            current_platform=SimpleNamespace(is_device_capability=exactly, is_device_capability_family=family),
            torch=SimpleNamespace(float8_e4m3fn="fp8"),
        )
        with contextlib.suppress(ValueError):
            assert function() == "fp8"
            accepted.add(capability)
    return accepted


def _accepted_by_operator(source: Path, scratch: Path) -> set[int]:
    """Compile the operator's own check of the device, and ask it for each capability."""
    checks = re.findall(
        r"  if \(a_type == vllm::kFE4M3fn\) \{\n    TORCH_CHECK\(.*?\n  \}\n",
        source.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert len(checks) == 1
    program = f"""
        #include <cstdio>
        #include <initializer_list>
        namespace vllm {{ constexpr int kFE4M3fn = 1; }}
        #define TORCH_CHECK(condition, ...) if (!(condition)) return false;
        static bool accepts(int major_capability, int minor_capability) {{
          const int a_type = vllm::kFE4M3fn;
          {checks[0]}
          return true;
        }}
        int main() {{
          for (int capability : {{{", ".join(map(str, CAPABILITIES))}}})
            if (accepts(capability / 10, capability % 10)) std::printf("%d\\n", capability);
        }}
    """
    return {int(line) for line in run_cpp(program, scratch).split()}


@pytest.mark.parametrize("version", ["0.16.0", "0.19.1"])
def test_python_and_both_operators_accept_the_family(
    version: str,
    vllm_tree: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    before = vllm_tree(version)
    after = patched_files(before, version, NAME, tmp_path / "after")
    assert _accepted_by_python(before) == {89, 120}
    assert _accepted_by_python(after) == WITH_FP8_TENSOR_CORES
    for operator in (DENSE, MOE):
        assert _accepted_by_operator(before / operator, tmp_path) == {89, 120}
        assert _accepted_by_operator(after / operator, tmp_path) == WITH_FP8_TENSOR_CORES


def test_0_22_accepts_in_python_and_refuses_in_the_dense_operator(
    vllm_tree: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    before = vllm_tree("0.22.1")
    after = patched_files(before, "0.22.1", NAME, tmp_path / "after")
    assert _accepted_by_python(before) == WITH_FP8_TENSOR_CORES
    assert _accepted_by_operator(before / MOE, tmp_path) == WITH_FP8_TENSOR_CORES
    assert _accepted_by_operator(before / DENSE, tmp_path) == {89, 120}
    assert _accepted_by_operator(after / DENSE, tmp_path) == WITH_FP8_TENSOR_CORES


@pytest.mark.parametrize("operator", [DENSE, MOE])
def test_the_generator_of_0_19_writes_fp8_kernels_for_12_1(
    operator: str,
    vllm_tree: Callable[[str], Path],
    build_python: Path,
    tmp_path: Path,
) -> None:
    before = vllm_tree("0.19.1")
    after = patched_files(before, "0.19.1", NAME, tmp_path / "after")

    def fp8_kernels(tree: Path, name: str) -> list[str]:
        folder = tmp_path / name
        shutil.copytree((before / operator).parent, folder)
        shutil.copy((tree / operator).with_name("generate_kernels.py"), folder)
        for stale in folder.glob("sm*_kernel_*.cu"):
            stale.unlink()
        run([build_python, folder / "generate_kernels.py", "12.1a"], cwd=folder)
        assert list(folder.glob("sm80_kernel_*.cu"))
        return sorted(path.name for path in folder.glob("sm89_kernel_*.cu"))

    assert fp8_kernels(before, "generated before") == []
    assert len(fp8_kernels(after, "generated after")) >= 4
