"""Where things lie: the checkout's data folders, and the cache outside it."""

import os
from pathlib import Path
from typing import Final

CHECKOUT: Final[Path] = Path(os.environ.get("SPARKWRIGHT_ROOT") or Path(__file__).resolve().parents[2])
"""The checkout, or, in an installed image, the folder that carries pins/, patches/ and the other data."""

PINS: Final[Path] = CHECKOUT / "pins"
REQUIREMENTS: Final[Path] = CHECKOUT / "requirements"
PATCHES: Final[Path] = CHECKOUT / "patches"
CUDA_HEADERS: Final[Path] = CHECKOUT / "cuda_headers"
TUNING_CONFIGS: Final[Path] = CHECKOUT / "tuning_configs"
RECIPES: Final[Path] = CHECKOUT / "recipes"
DOCS: Final[Path] = CHECKOUT / "docs"
BUILD: Final[Path] = CHECKOUT / "build"


def cache() -> Path:
    """Downloads, environments and the compiler cache; SPARKWRIGHT_CACHE moves it."""
    if chosen := os.environ.get("SPARKWRIGHT_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "sparkwright"
