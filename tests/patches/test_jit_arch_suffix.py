"""FlashInfer's own compilation context makes plain compute_121 of a listed 12.1; patched, compute_121a."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patches.conftest import PatchedFlashInfer
from tests.patches.flashinfer_modules import compilation_context

from sparkwright.pins.model import FileKind

pytestmark = pytest.mark.sources

NAME = "jit-arch-suffix"
RELEASES: list[tuple[str, FileKind]] = [("0.6.3", "sdist"), ("0.6.3", "wheel-any"), ("0.6.4", "sdist")]


@pytest.mark.parametrize(("version", "kind"), RELEASES)
def test_a_listed_architecture_gets_the_suffix_that_a_detected_one_gets(
    version: str,
    kind: FileKind,
    flashinfer_tree: Callable[[str, FileKind], Path],
    patched_flashinfer: PatchedFlashInfer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def flags(tree: Path, listed: str) -> set[str]:
        monkeypatch.setenv("FLASHINFER_CUDA_ARCH_LIST", listed)
        return {flag for flag in compilation_context(tree, monkeypatch).get_nvcc_flags_list() if "gencode" in flag}

    stock, mended = flashinfer_tree(version, kind), patched_flashinfer(version, kind, NAME)
    wanted = {"-gencode=arch=compute_121a,code=sm_121a"}
    assert flags(stock, "12.1") == {"-gencode=arch=compute_121,code=sm_121"}
    assert flags(mended, "12.1") == wanted
    for listed in ("12.1a", "12.0f", "8.9", "8.0 8.6", "9.0a 10.0a"):
        assert flags(mended, listed) == flags(stock, listed)
    monkeypatch.delenv("FLASHINFER_CUDA_ARCH_LIST")
    for tree in (stock, mended):
        detected = compilation_context(tree, monkeypatch, devices=[(12, 1)])
        assert wanted < set(detected.get_nvcc_flags_list())


def test_0_7_2_normalises_by_itself(
    flashinfer_tree: Callable[[str, FileKind], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHINFER_CUDA_ARCH_LIST", "12.1")
    context = compilation_context(flashinfer_tree("0.7.2.post1", "sdist"), monkeypatch)
    assert "-gencode=arch=compute_121a,code=sm_121a" in context.get_nvcc_flags_list()
