"""Single modules of FlashInfer, run without torch, a compiler or the rest of the package."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Protocol, cast

import pytest


class CompilationContext(Protocol):
    """What FlashInfer's JIT asks for the flags of nvcc."""

    def get_nvcc_flags_list(self, supported_major_versions: list[int] | None = None) -> list[str]:
        """The flags, or RuntimeError when no target is of these major versions."""


def module(name: str, **contents: object) -> ModuleType:
    """A module with these contents."""
    made = ModuleType(name)
    vars(made).update(contents)
    return made


def _load(tree: Path, name: str) -> ModuleType:
    """Run the real file of a module under its real name."""
    spec = importlib.util.spec_from_file_location(name, tree / f"{name.replace('.', '/')}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def compilation_context(
    tree: Path, monkeypatch: pytest.MonkeyPatch, devices: Sequence[tuple[int, int]] = ()
) -> CompilationContext:
    """The real compilation context of a tree, with CUDA 13.0 and these devices."""
    cuda = SimpleNamespace(device_count=lambda: len(devices), get_device_capability=lambda number: devices[number])
    package = module("flashinfer", __path__=[])
    jit = module("flashinfer.jit", __path__=[], env=SimpleNamespace(CUTLASS_INCLUDE_DIRS=()))
    compiler = module("flashinfer.jit.cpp_ext", is_cuda_version_at_least=lambda _: True, get_cuda_path=lambda: "/none")
    for stand_in in (module("torch", cuda=cuda), package, jit, compiler):
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    return cast(CompilationContext, _load(tree, "flashinfer.compilation_context").CompilationContext())


def moe_utils_flags(tree: Path, context: CompilationContext, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The flags with which the real gen_moe_utils_module of a tree would have its sources compiled."""
    anywhere = Path("/none")
    folders = SimpleNamespace(
        CUTLASS_INCLUDE_DIRS=(),
        FLASHINFER_CSRC_DIR=anywhere,
        FLASHINFER_GEN_SRC_DIR=anywhere,
        FLASHINFER_CUBIN_DIR=anywhere,
        FLASHINFER_INCLUDE_DIR=anywhere,
    )
    nothing: Callable[..., str] = lambda *_: "there"  # noqa: E731
    stand_ins = (
        module("flashinfer", __path__=[]),
        module("flashinfer.jit", __path__=[], env=folders),
        module(
            "flashinfer.jit.core",
            JitSpec=object,
            gen_jit_spec=lambda _name, _sources, extra_cuda_cflags, **_: extra_cuda_cflags,
            current_compilation_context=context,
        ),
        module(
            "flashinfer.jit.cubin_loader",
            get_artifact=nothing,
            get_meta_hash=nothing,
            ensure_symlink=nothing,
            verify_symlinked_headers=nothing,
        ),
        module("flashinfer.jit.fused_moe", BMM_EXPORT_HEADERS=()),
        module(
            "flashinfer.artifacts",
            ArtifactPath=SimpleNamespace(TRTLLM_GEN_BMM="bmm"),
            CheckSumHash=SimpleNamespace(TRTLLM_GEN_BMM="0"),
        ),
    )
    for stand_in in stand_ins:
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    flags: list[str] = _load(tree, "flashinfer.jit.moe_utils").gen_moe_utils_module()
    return flags
