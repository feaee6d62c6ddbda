"""The receipt inside a patched tree: what was applied, and the sha256 of every file before and after."""

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from sparkwright.errors import InputUnreadableError
from sparkwright.patching.model import Status

STATE: Final = ".sparkwright"
RECEIPT: Final = f"{STATE}/patches.json"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TouchedFile(_Model):
    """One file one patch changed; `before` is None for a file that the patch added."""

    path: str
    before: str | None
    after: str


class ReceiptEntry(_Model):
    """One patch: what it was to this tree, and what it did."""

    name: str
    status: Status
    reason: str
    kind: str
    definition: str
    """sha256 of the patch file that was applied."""
    files: tuple[TouchedFile, ...]


class Receipt(_Model):
    """What `patch apply` did to a tree."""

    component: str
    version: str
    sparkwright: str
    patches: tuple[ReceiptEntry, ...]

    def first_and_last(self) -> dict[str, tuple[str | None, str]]:
        """Per file: sha256 before the first patch that touched it, and after the last."""
        span: dict[str, tuple[str | None, str]] = {}
        for entry in self.patches:
            for file in entry.files:
                first = span[file.path][0] if file.path in span else file.before
                span[file.path] = (first, file.after)
        return span


def read_receipt(root: Path) -> Receipt | None:
    """The receipt of a tree, None when it has none. Raises as `load_receipt`."""
    return load_receipt(root / RECEIPT)


def load_receipt(path: Path) -> Receipt | None:
    """The receipt in a file, None when there is no such file.

    Raises:
        InputUnreadableError: there is one, but it cannot be understood.
    """
    try:
        return Receipt.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise InputUnreadableError(
            f"{path} is not a receipt: {error.error_count()} of its fields are wrong",
            cause="it was edited by hand, or another release of sparkwright wrote it",
            remedy="unpack the source again; the tree's state cannot be known without its receipt",
        ) from error
