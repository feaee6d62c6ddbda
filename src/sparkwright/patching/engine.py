"""Status, apply and revert of a patch series on an unpacked tree."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sparkwright import __version__
from sparkwright.errors import InputUnreadableError, PatchDriftError
from sparkwright.files import exclusive_lock, sha256_bytes
from sparkwright.patching.model import Status
from sparkwright.patching.plan import Finding, decode, examine_series
from sparkwright.patching.receipt import Receipt, ReceiptEntry, TouchedFile, read_receipt
from sparkwright.patching.series import NamedPatch, load_series
from sparkwright.patching.transaction import commit, original, pending, recover
from sparkwright.patching.tree import OverlayTree, Tree, open_directory


@dataclass(frozen=True, kw_only=True)
class Examination:
    """A tree as found: the findings per patch, and what applying the needed ones would change."""

    component: str
    version: str
    root: Path
    findings: tuple[Finding, ...]
    current: Tree
    pristine: Tree
    receipt: Receipt | None
    interrupted: bool

    @property
    def drifted(self) -> tuple[Finding, ...]:
        """The findings that forbid to go on."""
        return tuple(finding for finding in self.findings if finding.status is Status.DRIFTED)

    def to_json(self) -> list[dict[str, object]]:
        """One object per patch, as `sparkwright patch status --json` prints it."""
        return [describe(finding) for finding in self.findings]


def describe(finding: Finding) -> dict[str, object]:
    """A finding for scripts."""
    patch = finding.patch.patch
    return {
        "name": finding.patch.name,
        "component": finding.patch.component,
        "status": str(finding.status),
        "reason": finding.reason,
        "kind": patch.kind,
        "category": patch.category,
        "title": patch.title,
        "reference": patch.reference,
        "remove_when": patch.remove_when,
        "guarded_by": patch.guarded_by,
        "files": sorted(finding.changes),
    }


def _pristine(root: Path, current: Tree, receipt: Receipt | None) -> tuple[Tree, dict[str, str]]:
    """The tree without our patches, and per file that is not as the receipt says, what is wrong with it."""
    if receipt is None:
        return current, {}
    before_patches: dict[str, bytes | None] = {}
    wrong: dict[str, str] = {}
    for path, (first, last) in receipt.first_and_last().items():
        content = current.read(path)
        if content is None or sha256_bytes(content) != last:
            wrong[path] = f"{path} is not as the receipt says it was left: it changed after it was patched"
        if first is None:
            before_patches[path] = None
            continue
        try:
            kept = original(root, path)
        except FileNotFoundError:
            kept = b""
        if sha256_bytes(kept) != first:
            wrong[path] = f"the kept original of {path} is not the file that the receipt names"
        before_patches[path] = kept
    return OverlayTree(current, before_patches), wrong


def examine(root: Path, component: str, version: str, *, series: Sequence[NamedPatch] | None = None) -> Examination:
    """Judge a series (by default all patches of the component) on a tree; writes nothing.

    A patch that the receipt lists as applied, by the same definition, is `applied`. One whose files changed since
    is `drifted`.

    Raises:
        InputUnreadableError: the folder is not a tree of the component, or its receipt is of something else.
    """
    current: Tree = open_directory(component, root)
    receipt = read_receipt(root)
    interrupted = pending(root)
    if interrupted is not None:
        current, receipt = interrupted
    if receipt is not None and (receipt.component, receipt.version) != (component, version):
        raise InputUnreadableError(
            f"{root} was patched as {receipt.component} {receipt.version}, not as {component} {version}",
            remedy=f"name that component and version, or unpack {component} {version} elsewhere",
        )
    pristine, wrong = _pristine(root, current, receipt)
    chosen = load_series(component) if series is None else series
    findings = [_with_receipt(finding, receipt, wrong) for finding in examine_series(chosen, pristine, version, root)]
    return Examination(
        component=component,
        version=version,
        root=root,
        findings=tuple(findings),
        current=current,
        pristine=pristine,
        receipt=receipt,
        interrupted=interrupted is not None,
    )


def _with_receipt(finding: Finding, receipt: Receipt | None, wrong: dict[str, str]) -> Finding:
    touched = wrong.keys() & finding.changes.keys()
    if touched:
        return replace(finding, status=Status.DRIFTED, reason=wrong[min(touched)])
    if receipt is None or finding.status is not Status.NEEDED:
        return finding
    for entry in receipt.patches:
        if entry.name == finding.patch.name and entry.status is Status.APPLIED:
            if entry.definition == finding.patch.definition:
                return replace(finding, status=Status.APPLIED, reason="applied, and its files are as it left them")
            return replace(finding, reason="applied in an older form; apply again to bring the tree up to date")
    return finding


def _result(examination: Examination) -> dict[str, bytes]:
    """Contents of all files that the needed patches change."""
    made: dict[str, bytes] = {}
    for finding in examination.findings:
        made.update(finding.changes)
    return made


def _receipt(examination: Examination) -> Receipt:
    overlay = OverlayTree(examination.pristine)
    entries = []
    for finding in examination.findings:
        files = []
        for path, content in sorted(finding.changes.items()):
            before = overlay.read(path)
            files.append(
                TouchedFile(
                    path=path,
                    before=None if before is None else sha256_bytes(before),
                    after=sha256_bytes(content),
                )
            )
            overlay.changes[path] = content
        status = Status.APPLIED if finding.status is Status.NEEDED else finding.status
        reason = finding.patch.patch.title if finding.changes else finding.reason
        entries.append(
            ReceiptEntry(
                name=finding.patch.name,
                status=status,
                reason=reason,
                kind=finding.patch.patch.kind,
                definition=finding.patch.definition,
                files=tuple(files),
            )
        )
    return Receipt(
        component=examination.component, version=examination.version, sparkwright=__version__, patches=tuple(entries)
    )


def require_no_drift(examination: Examination) -> None:
    """Raise PatchDriftError, naming each drifted patch, unless there is none."""
    if not examination.drifted:
        return
    lines = [f"  {finding.patch.name}: {finding.reason}" for finding in examination.drifted]
    if examination.component == "cuda":
        cause = "the toolkit is not as NVIDIA made it, or the environment adds to what the compiler is told"
        remedy = "mend what the reason names; nothing here repairs a toolkit"
    else:
        cause = "the source is not the release it is said to be, was edited by hand, or upstream changed it"
        remedy = "unpack the release again; if it is a new release, mend the patch (CONTRIBUTING.md, refresh a patch)"
    raise PatchDriftError(
        f"{len(lines)} of {len(examination.findings)} patches of {examination.component} {examination.version} "
        "have drifted; nothing was changed\n" + "\n".join(lines),
        cause=cause,
        remedy=remedy,
    )


def apply_series(
    root: Path, component: str, version: str, *, series: Sequence[NamedPatch] | None = None
) -> Examination:
    """Apply what is needed of a series, all or nothing; doing it again changes nothing.

    The tree holds exactly this series afterwards: what an earlier, larger one changed is taken back.

    Returns the examination of the tree as it was left.

    Raises:
        PatchDriftError: a patch is drifted; nothing was changed.
        OutputError: the tree cannot be written; nothing was changed.
        LockedError: another run is patching this tree.
    """
    open_directory(component, root)
    with exclusive_lock(root, doing="patching"):
        recover(root)
        found = examine(root, component, version, series=series)
        require_no_drift(found)
        wanted = _result(found)
        receipt = _receipt(found)
        stale = set(found.receipt.first_and_last() if found.receipt else {}) - set(wanted)
        changes: dict[str, bytes | None] = {path: found.pristine.read(path) for path in stale}
        changes |= {path: content for path, content in wanted.items() if found.current.read(path) != content}
        if changes or receipt != found.receipt:
            commit(root, changes, receipt)
    return examine(root, component, version, series=series)


def revert_series(
    root: Path, component: str, version: str, *, series: Sequence[NamedPatch] | None = None
) -> Examination:
    """Give every byte back; a tree that was never patched is left alone.

    Raises:
        PatchDriftError: a file changed after it was patched, so reverting would lose that change.
    """
    open_directory(component, root)
    with exclusive_lock(root, doing="patching"):
        recover(root)
        found = examine(root, component, version, series=series)
        if found.receipt is not None:
            _, wrong = _pristine(root, found.current, found.receipt)
            if wrong:
                raise PatchDriftError(
                    f"nothing was reverted: {'; '.join(wrong.values())}",
                    remedy="undo your own change first, or unpack the source again",
                )
            commit(root, {path: found.pristine.read(path) for path in found.receipt.first_and_last()}, None)
    return examine(root, component, version, series=series)


def unified_diff(examination: Examination) -> str:
    """What applying would change, as `diff -u` shows it."""
    lines: list[str] = []
    for path, content in sorted(_result(examination).items()):
        before, after = examination.current.read(path), content
        if before == after:
            continue
        lines += difflib.unified_diff(
            (decode(before) or "").splitlines(keepends=True),
            (decode(after) or "").splitlines(keepends=True),
            f"a/{path}" if before is not None else "/dev/null",
            f"b/{path}",
        )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
