"""Where the image's programs keep what they compile and download."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Cache:
    """One cache: the variable that moves it, and where it is without one."""

    name: str
    variable: str
    below: str
    """What the program appends to the variable's value."""
    default: str
    """Below `~`, or below XDG_CACHE_HOME where `honours_xdg`."""
    honours_xdg: bool
    grows_to_gb: float
    """Room that it may need: rounded up from what is known, not a limit."""

    def folder(self, environment: Mapping[str, str]) -> Path:
        """Where it is in this environment."""
        home = Path(environment.get("HOME") or "/")
        if chosen := environment.get(self.variable):
            return Path(chosen) / self.below if self.below else Path(chosen)
        if self.honours_xdg:
            return Path(environment.get("XDG_CACHE_HOME") or home / ".cache") / self.default
        return home / self.default


CACHES: Final = (
    Cache(
        name="models",
        variable="HF_HOME",
        below="",
        default="huggingface",
        honours_xdg=True,
        grows_to_gb=100,
    ),
    Cache(
        name="FlashInfer",
        variable="FLASHINFER_WORKSPACE_BASE",
        below=".cache/flashinfer",
        default=".cache/flashinfer",
        honours_xdg=False,
        grows_to_gb=1,
    ),
    Cache(
        name="vLLM and torch.compile",
        variable="VLLM_CACHE_ROOT",
        below="",
        default="vllm",
        honours_xdg=True,
        grows_to_gb=2,
    ),
    Cache(
        name="Triton",
        variable="TRITON_CACHE_DIR",
        below="",
        default=".triton/cache",
        honours_xdg=False,
        grows_to_gb=1,
    ),
    Cache(
        name="CUDA driver",
        variable="CUDA_CACHE_PATH",
        below="",
        default=".nv/ComputeCache",
        honours_xdg=False,
        grows_to_gb=1,
    ),
    Cache(
        name="DeepGEMM",
        variable="DG_JIT_CACHE_DIR",
        below="",
        default=".deep_gemm",
        honours_xdg=False,
        grows_to_gb=1,
    ),
)


def nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def writable(folder: Path) -> bool:
    """Whether files can be made in it, or in the nearest folder above it that exists."""
    found = nearest(folder)
    return found.is_dir() and os.access(found, os.W_OK | os.X_OK)
