"""What of the locked packages stays in the image, and how large it was when that was last agreed: data with reasons."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from pydantic import Field

from sparkwright.errors import ConfigurationError
from sparkwright.paths import REQUIREMENTS
from sparkwright.pins.load import read
from sparkwright.pins.model import RelativePath, Strict, Text

DEBUG_SECTIONS: Final = ".debug_"
"""How the names of the sections begin that `strip --strip-debug` removes; the symbol table shrinks as well."""


class Selection(Strict):
    """Files of one project, as globs over the paths in its wheel; `*` also matches `/`."""

    project: Text
    files: tuple[RelativePath, ...] = Field(min_length=1)
    why: Text

    def pick(self, paths: Iterable[str]) -> set[str]:
        """Those of `paths` that are meant.

        Raises:
            ConfigurationError: a pattern matches none, so the list no longer fits the packages.
        """
        picked: set[str] = set()
        known = list(paths)
        for pattern in self.files:
            matched = {path for path in known if fnmatchcase(path, pattern)}
            if not matched:
                raise ConfigurationError(
                    f"{self.project} has no file {pattern}, which the image leaves out or strips",
                    cause="another release of the project lays its files out in another way, or it is not installed",
                    remedy="look where these files are now, and correct requirements/image-<line>.toml",
                )
            picked |= matched
        return picked


class RecordedSize(Strict):
    """How large the image of a DGX Spark was when this was last written down by hand; bytes."""

    packages: int = Field(gt=0)
    """The locked wheels and our vLLM, as far as they stay."""
    packages_zstd: int = Field(gt=0)
    """The same, compressed as layers are."""
    system: int = Field(gt=0)
    """Base image, Python, C++ compiler, RDMA libraries, sparkwright."""
    system_zstd: int = Field(gt=0)
    vllm_smaller: int = Field(ge=0)
    """By how much the vLLM that is made here is smaller than the official wheel without what is unbuilt."""
    vllm_smaller_zstd: int = Field(ge=0)
    why: Text


class Contents(Strict):
    """What requirements/image-<line>.toml says."""

    size: RecordedSize
    removed: tuple[Selection, ...] = Field(alias="removal", min_length=1)
    stripped: tuple[Selection, ...] = ()
    unbuilt: tuple[Selection, ...] = ()
    """What is in an official wheel and not in the one made here; only the size report needs to know."""


def contents_path(line: str) -> Path:
    """Where the contents of a line are written down."""
    return REQUIREMENTS / f"image-{line}.toml"


def load_contents(line: str) -> Contents:
    """The contents of a line.

    Raises:
        ConfigurationError: it is missing or wrong.
    """
    return read(contents_path(line), Contents)
