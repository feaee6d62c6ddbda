"""What is installed beside this package: releases, patch receipts, and FlashInfer's modules that were built ahead."""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from sparkwright.native.jit_modules import AOT_FOLDER
from sparkwright.patching.receipt import RECEIPT, Receipt, load_receipt

_COMMIT: Final = re.compile(r"^(?:__commit_id__ = )?commit_id = ['\"]g?([0-9a-f]{7,40})['\"]", re.MULTILINE)
_RECEIPTS: Final = (RECEIPT, "*.dist-info/sparkwright/patches.json")


@dataclass(frozen=True, kw_only=True)
class HeldReceipt:
    """A receipt and the folder that its paths start from."""

    root: Path
    receipt: Receipt


@dataclass(frozen=True)
class Installed:
    """The packages in some folders; by default in those that this Python imports from."""

    folders: tuple[Path, ...]

    @classmethod
    def here(cls) -> "Installed":
        """What this Python imports."""
        return cls(tuple(Path(folder) for folder in sys.path if Path(folder).is_dir()))

    def version(self, project: str) -> str | None:
        """The installed release of a project, or None."""
        found = self._distribution(project)
        return found.version if found else None

    def versions(self, projects: Sequence[str]) -> dict[str, str]:
        """The releases of those that are installed."""
        return {project: version for project in projects if (version := self.version(project))}

    def package(self, name: str) -> Path | None:
        """The folder of an importable package, or None."""
        return next((folder / name for folder in self.folders if (folder / name / "__init__.py").is_file()), None)

    def vllm_commit(self) -> str | None:
        """The commit that upstream's own version file names, or None."""
        package = self.package("vllm")
        try:
            found = _COMMIT.search((package / "_version.py").read_text(encoding="utf-8")) if package else None
        except OSError:
            return None
        return found[1] if found else None

    def receipts(self) -> Iterator[HeldReceipt]:
        """The receipts that patched packages carry: below the folder itself, or in the metadata of a wheel of ours.

        Raises:
            InputUnreadableError: one cannot be understood.
        """
        for folder in self.folders:
            for file in (file for pattern in _RECEIPTS for file in sorted(folder.glob(pattern))):
                if receipt := load_receipt(file):
                    yield HeldReceipt(root=folder, receipt=receipt)

    def aot_folder(self) -> Path | None:
        """Where FlashInfer looks for modules that were built ahead, whether it exists or not."""
        package = self.package("flashinfer")
        return package / AOT_FOLDER if package else None

    def _distribution(self, project: str) -> metadata.Distribution | None:
        found = metadata.distributions(name=project, path=[str(folder) for folder in self.folders])
        return next(iter(found), None)
