"""vLLM's own CMake functions build SM12x features without a suffix or not at all; patched, they refuse."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patches.conftest import PatchedBuild
from tests.patches.upstream_cmake import UpstreamCMake

pytestmark = [pytest.mark.sources, pytest.mark.compiles]

NAME = "refuse-plain-sm12x"
ADVICE = "Set TORCH_CUDA_ARCH_LIST to 12.1a (GB10) or 12.0f (every SM12x)"
GEMM = "nvfp4_scaled_mm_sm120_kernels.cu"


@pytest.mark.parametrize(("version", "answer"), [("0.16.0", ""), ("0.19.1", "12.1"), ("0.33.0", "12.1")])
def test_a_plain_12_1_is_answered_wrongly_and_now_refused(
    version: str,
    answer: str,
    vllm_tree: Callable[[str], Path],
    patched_build: PatchedBuild,
    upstream_cmake: UpstreamCMake,
) -> None:
    assert upstream_cmake.intersect(vllm_tree(version), ("12.0f", "12.1")) == ([answer], "")
    answers, error = upstream_cmake.intersect(patched_build(version, [NAME]), ("12.0f", "12.1"))
    assert not answers
    assert ADVICE in error


@pytest.mark.parametrize("version", ["0.16.0", "0.19.1", "0.33.0"])
def test_what_upstream_answers_rightly_is_left_alone(
    version: str, vllm_tree: Callable[[str], Path], patched_build: PatchedBuild, upstream_cmake: UpstreamCMake
) -> None:
    tree, mended = vllm_tree(version), patched_build(version, [NAME])
    requests = ["12.0", "8.0;9.0;10.0", "8.0;9.0;12.0", "9.0"]
    requests += [] if version == "0.16.0" else ["12.1a", "12.1f", "12.0f", "9.0;12.1a", "12.0;12.1"]
    lists = ["12.0f", "8.0+PTX;12.0f", "9.0a;10.0f;12.0f", "8.9;12.0;12.1", "7.5;8.0;12.0"]
    questions = [(listed, requested) for listed in lists for requested in requests]
    before, error = upstream_cmake.intersect(tree, *questions)
    assert (len(before), error) == (len(questions), "")
    assert upstream_cmake.intersect(mended, *questions) == (before, "")


def test_configure_of_0_19_builds_empty_gemms_and_now_stops(
    vllm_tree: Callable[[str], Path], patched_build: PatchedBuild, upstream_cmake: UpstreamCMake
) -> None:
    stock = upstream_cmake.configure(vllm_tree("0.19.1"), "12.1")
    assert stock.code_of(GEMM) == {"sm_121"}
    mended = upstream_cmake.configure(patched_build("0.19.1", [NAME]), "12.1")
    assert ADVICE in mended.error
    assert not mended.code_of(GEMM)


def test_configure_of_0_24_asks_for_plain_code_beside_family_code_where_a_list_names_12_1f(
    patched_build: PatchedBuild, upstream_cmake: UpstreamCMake, vllm_tree: Callable[[str], Path]
) -> None:
    question = ("9.0a;10.0f;10.1f;10.3f;11.0f;12.0f;12.1f", "12.1")
    assert upstream_cmake.intersect(vllm_tree("0.24.0"), question) == (["12.1;12.1f"], "")
    assert ADVICE in upstream_cmake.intersect(patched_build("0.24.0", [NAME]), question)[1]


@pytest.mark.parametrize("version", ["0.16.0", "0.33.0"])
def test_releases_whose_list_ends_at_12_0_still_turn_12_1_into_12_0f(
    version: str, patched_build: PatchedBuild, upstream_cmake: UpstreamCMake
) -> None:
    tree = patched_build(version, [NAME, "lean-gb10-externals"])
    for request in ("12.1", "12.1a", "12.0f", "12.0"):
        configured = upstream_cmake.configure(tree, request, lean=True)
        assert configured.error == ""
        assert configured.code_of(GEMM) == {"sm_120f"}


@pytest.mark.parametrize("version", ["0.24.0", "0.33.0"])
def test_it_guards_the_longer_list_of_native_sm121a_code(
    version: str, patched_build: PatchedBuild, upstream_cmake: UpstreamCMake
) -> None:
    tree = patched_build(version, [NAME, "native-sm121a-code", "lean-gb10-externals"])
    assert ADVICE in upstream_cmake.configure(tree, "12.1", lean=True).error
    assert upstream_cmake.configure(tree, "12.1a", lean=True).error == ""
