"""FlashInfer's own gen_moe_utils_module refuses a GB10; patched, it compiles for it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patches.conftest import PatchedFlashInfer
from tests.patches.flashinfer_modules import compilation_context, moe_utils_flags

from sparkwright.pins.model import FileKind

pytestmark = pytest.mark.sources

KINDS: list[FileKind] = ["sdist", "wheel-any"]


@pytest.mark.parametrize("kind", KINDS)
def test_gb10_is_refused_and_then_served(
    kind: FileKind,
    flashinfer_tree: Callable[[str, FileKind], Path],
    patched_flashinfer: PatchedFlashInfer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FLASHINFER_CUDA_ARCH_LIST", raising=False)
    stock = flashinfer_tree("0.7.2.post1", kind)
    mended = patched_flashinfer("0.7.2.post1", kind, "moe-utils-sm12x")
    gb10 = compilation_context(stock, monkeypatch, devices=[(12, 1)])
    with pytest.raises(RuntimeError, match="No supported CUDA architectures"):
        moe_utils_flags(stock, gb10, monkeypatch)
    assert "-gencode=arch=compute_121a,code=sm_121a" in moe_utils_flags(mended, gb10, monkeypatch)
    hopper = compilation_context(stock, monkeypatch, devices=[(9, 0)])
    assert moe_utils_flags(mended, hopper, monkeypatch) == moe_utils_flags(stock, hopper, monkeypatch)


def test_0_6_4_had_12_in_its_list(
    flashinfer_tree: Callable[[str, FileKind], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLASHINFER_CUDA_ARCH_LIST", raising=False)
    tree = flashinfer_tree("0.6.4", "sdist")
    gb10 = compilation_context(tree, monkeypatch, devices=[(12, 1)])
    assert "-gencode=arch=compute_121a,code=sm_121a" in moe_utils_flags(tree, gb10, monkeypatch)
