"""Decide what each patch of a series is to a tree, and what the tree becomes; nothing here writes."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sparkwright.patching.model import (
    AddFile,
    Because,
    Edit,
    EditMismatchError,
    Patch,
    Status,
    Variant,
    covers,
)
from sparkwright.patching.series import NamedPatch
from sparkwright.patching.shell import ShellPatch
from sparkwright.patching.tree import OverlayTree, Tree


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one patch is to one tree. `changes` are the new contents of the files it edits, when it is needed."""

    patch: NamedPatch
    status: Status
    reason: str
    changes: dict[str, bytes]


def decode(content: bytes | None) -> str | None:
    """Text of a file such that encoding it again gives every byte back, whatever they are."""
    return None if content is None else content.decode("utf-8", errors="surrogateescape")


def encode(text: str) -> bytes:
    """The inverse of decode."""
    return text.encode("utf-8", errors="surrogateescape")


def _recognised(states: Iterable[Because], tree: Tree, version: str) -> Because | None:
    for state in states:
        if covers(state.releases, version) and all(sign.shows(decode(tree.read(sign.path))) for sign in state.signs):
            return state
    return None


def _edit(edit: Edit, tree: Tree) -> bytes:
    content = tree.read(edit.path)
    if isinstance(edit, AddFile):
        if content is not None:
            raise EditMismatchError(f"{edit.path}: the file to add is already there")
        return encode(edit.text)
    text = decode(content)
    if text is None:
        raise EditMismatchError(f"{edit.path}: no such file")
    return encode(edit.apply(text))


def _is_done(edit: Edit, tree: Tree) -> bool:
    text = decode(tree.read(edit.path))
    if text is None:
        return False
    return text == edit.text if isinstance(edit, AddFile) else edit.is_done(text)


def edited(variant: Variant, tree: Tree) -> dict[str, bytes]:
    """The contents after all edits of a variant, or EditMismatchError at the first that does not match."""
    for sign in variant.requires:
        if not sign.shows(decode(tree.read(sign.path))):
            raise EditMismatchError(f"{sign.path}: {sign} does not show")
    overlay = OverlayTree(tree)
    for edit in variant.edits:
        overlay.changes[edit.path] = _edit(edit, overlay)
    return {path: content for path, content in overlay.changes.items() if content is not None}


def _examine(named: NamedPatch, patch: Patch, tree: Tree, version: str) -> Finding:
    def finding(status: Status, reason: str, changes: dict[str, bytes] | None = None) -> Finding:
        return Finding(patch=named, status=status, reason=reason, changes=changes or {})

    if found := _recognised(patch.fault, tree, version):
        return finding(Status.DRIFTED, f"{found.why} (nothing here mends it)")
    mismatch = f"release {version} lies outside {patch.releases}"
    if covers(patch.releases, version):
        for variant in patch.variants:
            if not covers(variant.releases, version):
                continue
            try:
                return finding(Status.NEEDED, patch.title, edited(variant, tree))
            except EditMismatchError as error:
                mismatch = str(error)
            if all(_is_done(edit, tree) for edit in variant.edits):
                return finding(Status.APPLIED, "the tree already holds these edits, without a receipt of ours")
    if found := _recognised(patch.upstream, tree, version):
        return finding(Status.UPSTREAM, found.why)
    if found := _recognised(patch.not_applicable, tree, version):
        return finding(Status.NOT_APPLICABLE, found.why)
    return finding(Status.DRIFTED, f"neither the fault nor the upstream fix is recognised: {mismatch}")


def examine_series(series: Iterable[NamedPatch], tree: Tree, version: str, root: Path | None = None) -> list[Finding]:
    """Judge each patch on the tree as the patches before it leave it.

    `root` is the folder of the tree for shell patches, which look at files in their place; without one, as in an
    archive, shell patches are left out.
    """
    overlay = OverlayTree(tree)
    findings = []
    for named in series:
        if isinstance(named.patch, ShellPatch):
            if root is None:
                continue
            status, reason = named.patch.check(root)
            changes = named.patch.apply(overlay) if status is Status.NEEDED else {}
            found = Finding(patch=named, status=status, reason=reason, changes=changes)
        else:
            found = _examine(named, named.patch, overlay, version)
        overlay.changes.update(found.changes)
        findings.append(found)
    return findings
