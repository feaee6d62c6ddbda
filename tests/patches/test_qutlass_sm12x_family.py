"""QuTLASS of vLLM before 0.19 is built as sm_120a, which loads on 12.0 only; patched, as sm_120f."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patches.conftest import PatchedBuild
from tests.patches.upstream_cmake import UpstreamCMake

pytestmark = [pytest.mark.sources, pytest.mark.compiles]

QUTLASS = "cmake/external_projects/qutlass.cmake"


@pytest.mark.parametrize("version", ["0.16.0", "0.18.1"])
def test_the_family_is_built_instead_of_12_0_alone(
    version: str, vllm_tree: Callable[[str], Path], patched_build: PatchedBuild, upstream_cmake: UpstreamCMake
) -> None:
    stock = upstream_cmake.configure(vllm_tree(version), "12.0", only=QUTLASS)
    assert (set(stock.all_code()), stock.error) == ({"sm_120a"}, "")
    tree = patched_build(version, ["qutlass-sm12x-family"])
    mended = upstream_cmake.configure(tree, "12.0", only=QUTLASS)
    assert (set(mended.all_code()), mended.error) == ({"sm_120f"}, "")
    assert mended.sources == stock.sources


@pytest.mark.parametrize(("archs", "cuda"), [("10.0", "13.0.88"), ("9.0", "13.0.88"), ("12.0", "12.9.86")])
def test_other_targets_are_as_before(
    archs: str,
    cuda: str,
    vllm_tree: Callable[[str], Path],
    patched_build: PatchedBuild,
    upstream_cmake: UpstreamCMake,
) -> None:
    stock = upstream_cmake.configure(vllm_tree("0.16.0"), archs, cuda=cuda, only=QUTLASS)
    tree = patched_build("0.16.0", ["qutlass-sm12x-family"])
    assert upstream_cmake.configure(tree, archs, cuda=cuda, only=QUTLASS) == stock
