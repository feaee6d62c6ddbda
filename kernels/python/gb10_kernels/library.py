"""The compiled operators: where they are, and what is wrong when they are not."""

import functools
import os
from pathlib import Path

import torch

LIBRARY_VARIABLE = "GB10_KERNELS_LIBRARY"
"""Names a library to use instead of the installed one, such as a build for the CPU."""


class NotBuiltError(RuntimeError):
    """The operators cannot be loaded here."""


def path() -> Path:
    """Where the library is, or would be."""
    return Path(os.environ.get(LIBRARY_VARIABLE) or Path(__file__).with_name("_C.so"))


@functools.cache
def load() -> None:
    """Register the operators with torch, once.

    Raises:
        NotBuiltError: there is no library, or torch cannot load it.
    """
    library = path()
    if not library.is_file():
        raise NotBuiltError(f"{library} is not there: gb10_kernels was installed without its compiled part")
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise NotBuiltError(f"torch {torch.__version__} cannot load {library}: {error}") from error
