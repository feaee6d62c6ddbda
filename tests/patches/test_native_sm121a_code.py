"""Asked for 12.1a, vLLM's own CMake asks nvcc for no sm_121a code; patched, for nothing else on SM12x."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.patches.conftest import PatchedBuild
from tests.patches.upstream_cmake import UpstreamCMake

from sparkwright.errors import PatchDriftError

pytestmark = [pytest.mark.sources, pytest.mark.compiles]

NAMES = ["refuse-plain-sm12x", "native-sm121a-code"]
GEMM = "nvfp4_scaled_mm_sm120_kernels.cu"
SM12X = re.compile(r"sm_12\d[af]?")


def sm12x(code: frozenset[str]) -> set[str]:
    return {target for target in code if SM12X.fullmatch(target)}


@pytest.mark.parametrize("version", ["0.22.1", "0.24.0", "0.28.0", "0.33.0"])
def test_12_1a_is_built_as_sm_121a(
    version: str, vllm_tree: Callable[[str], Path], patched_build: PatchedBuild, upstream_cmake: UpstreamCMake
) -> None:
    stock = upstream_cmake.configure(vllm_tree(version), "12.1a")
    assert sm12x(stock.all_code()) == {"sm_120", "sm_120f"}
    mended = upstream_cmake.configure(patched_build(version, NAMES), "12.1a")
    assert sm12x(mended.all_code()) == {"sm_121a"}
    assert mended.code.keys() == stock.code.keys()
    for source, code in stock.code.items():
        assert mended.code[source] == {"sm_121a" if target in ("sm_120", "sm_120f") else target for target in code}


@pytest.mark.parametrize("archs", ["12.0", "12.0f", "9.0;10.0", "8.0;9.0;12.0"])
@pytest.mark.parametrize("cuda", ["12.9.86", "13.0.88"])
def test_other_requests_are_built_as_before(
    archs: str, cuda: str, vllm_tree: Callable[[str], Path], patched_build: PatchedBuild, upstream_cmake: UpstreamCMake
) -> None:
    stock = upstream_cmake.configure(vllm_tree("0.33.0"), archs, cuda=cuda)
    assert upstream_cmake.configure(patched_build("0.33.0", NAMES), archs, cuda=cuda).code == stock.code


def test_a_newer_cuda_gets_it_too(
    vllm_tree: Callable[[str], Path], patched_build: PatchedBuild, upstream_cmake: UpstreamCMake
) -> None:
    stock = upstream_cmake.configure(vllm_tree("0.33.0"), "12.1a", cuda="13.4.10")
    assert "sm_121a" not in stock.all_code()
    mended = upstream_cmake.configure(patched_build("0.33.0", NAMES), "12.1a", cuda="13.4.10")
    assert sm12x(mended.all_code()) == {"sm_121a"}


def test_without_the_check_that_refuses_a_plain_target_it_is_refused(patched_build: PatchedBuild) -> None:
    with pytest.raises(PatchDriftError, match="native-sm121a-code"):
        patched_build("0.33.0", NAMES[1:])


def test_the_same_edit_would_empty_0_16(
    vllm_tree: Callable[[str], Path], patched_build: PatchedBuild, upstream_cmake: UpstreamCMake
) -> None:
    assert upstream_cmake.configure(vllm_tree("0.16.0"), "12.1a").code_of(GEMM) == {"sm_120f"}
    tree = patched_build("0.16.0", ["lean-gb10-externals"])
    cmake = tree / "CMakeLists.txt"
    cmake.write_text(cmake.read_text().replace('10.0;11.0;12.0")', '10.0;11.0;12.0;12.1")'))
    assert upstream_cmake.configure(tree, "12.1a", lean=True).code_of(GEMM) == frozenset()


def test_the_generator_of_0_21_has_fp8_activations_for_12_0_only(vllm_tree: Callable[[str], Path]) -> None:
    def supports_fp8(version: str, arch: str) -> bool:
        script = (vllm_tree(version) / "csrc/quantization/marlin/generate_kernels.py").read_text()
        start, end = script.index("ARCHS = []"), script.index("FILE_HEAD_COMMENT")
        names: dict[str, object] = {"sys": SimpleNamespace(argv=["generate_kernels.py", arch])}
        exec(script[start:end], names)
        return names["SUPPORT_FP8"] is True

    assert supports_fp8("0.21.0", "12.0")
    assert not supports_fp8("0.21.0", "12.1a")
    assert supports_fp8("0.22.1", "12.1a")
