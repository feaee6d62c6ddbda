"""The words a patch file is written in: Patch, its variants of edits, and the signs that tell states apart.

A patch file states facts about upstream source text. Nothing here reads or writes a file: an edit maps the
text of one file to a new text, a sign says whether a text shows something, and `sparkwright.patching.engine`
decides and acts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Literal

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from sparkwright.errors import ConfigurationError


class Status(StrEnum):
    """What a patch is to one tree."""

    NEEDED = "needed"
    APPLIED = "applied"
    UPSTREAM = "upstream"
    NOT_APPLICABLE = "not-applicable"
    DRIFTED = "drifted"


class EditMismatchError(Exception):
    """An edit does not match its file exactly. Internal to patching; never reaches the user bare."""


def _checked_path(path: str) -> None:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise ConfigurationError(f"{path!r} is not a path inside the tree")


def _exchange(path: str, text: str, old: str, new: str, count: int) -> str:
    found = text.count(old)
    if found != count:
        raise EditMismatchError(f"{path}: expected {count} of {_shown(old)}, found {found}")
    return text.replace(old, new)


@dataclass(frozen=True, kw_only=True)
class Replace:
    """Replace `old` by `new`; `old` must stand in the file exactly `count` times.

    To keep the old text as an anchor use InsertBefore or InsertAfter: `new` must not contain `old`.
    """

    path: str
    old: str
    new: str
    count: int = 1

    def __post_init__(self) -> None:
        _checked_path(self.path)
        if not self.old or self.count < 1:
            raise ConfigurationError(f"an edit of {self.path} replaces nothing")
        if self.old in self.new:
            raise ConfigurationError(f"an edit of {self.path} keeps what it replaces: use InsertBefore or InsertAfter")

    def apply(self, text: str) -> str:
        """The edited text, or EditMismatchError when `old` does not stand there exactly `count` times."""
        return _exchange(self.path, text, self.old, self.new, self.count)

    def is_done(self, text: str) -> bool:
        """Whether the text looks as this edit leaves it; a deletion leaves nothing to recognise."""
        return bool(self.new) and text.count(self.new) == self.count and self.old not in text.replace(self.new, "")


@dataclass(frozen=True, kw_only=True)
class _Insertion:
    path: str
    anchor: str
    text: str
    count: int = 1

    def __post_init__(self) -> None:
        _checked_path(self.path)
        if not self.anchor or not self.text or self.count < 1:
            raise ConfigurationError(f"an edit of {self.path} inserts nothing")

    @property
    def result(self) -> str:
        """The anchor with the insertion."""
        raise NotImplementedError

    def apply(self, text: str) -> str:
        """As Replace.apply; a text that already holds the insertion does not match."""
        if self.is_done(text):
            raise EditMismatchError(f"{self.path}: the insertion is already there")
        return _exchange(self.path, text, self.anchor, self.result, self.count)

    def is_done(self, text: str) -> bool:
        """Whether the insertion stands at every anchor."""
        return text.count(self.result) == self.count == text.count(self.anchor)


@dataclass(frozen=True, kw_only=True)
class InsertBefore(_Insertion):
    """Put `text` directly before `anchor`, which must stand in the file exactly `count` times."""

    @property
    def result(self) -> str:
        """The anchor with the insertion."""
        return self.text + self.anchor


@dataclass(frozen=True, kw_only=True)
class InsertAfter(_Insertion):
    """Put `text` directly after `anchor`, which must stand in the file exactly `count` times."""

    @property
    def result(self) -> str:
        """The anchor with the insertion."""
        return self.anchor + self.text


@dataclass(frozen=True, kw_only=True)
class AddFile:
    """Put a new file into the tree; it must not be there yet. `text` is its whole content."""

    path: str
    text: str

    def __post_init__(self) -> None:
        _checked_path(self.path)


@dataclass(frozen=True, kw_only=True)
class Computed:
    """An edit that text cannot express, for instance over a CMake list.

    `compute` returns the new text or raises EditMismatchError; `done` recognises its result; `describe`
    says in one line what it does.
    """

    path: str
    compute: Callable[[str], str]
    done: Callable[[str], bool]
    describe: str

    def __post_init__(self) -> None:
        _checked_path(self.path)

    def apply(self, text: str) -> str:
        """The edited text."""
        return self.compute(text)

    def is_done(self, text: str) -> bool:
        """Whether the text looks as this edit leaves it."""
        return self.done(text)


TextEdit = Replace | InsertBefore | InsertAfter | Computed
Edit = TextEdit | AddFile


@dataclass(frozen=True, kw_only=True)
class Contains:
    """A sign: the file is there and holds `text`, exactly `count` times if that is given."""

    path: str
    text: str
    count: int | None = None

    def shows(self, content: str | None) -> bool:
        """Whether the content (None: no such file) shows the sign."""
        if content is None:
            return False
        found = content.count(self.text)
        return found > 0 if self.count is None else found == self.count


@dataclass(frozen=True, kw_only=True)
class Lacks:
    """A sign: the file is there and does not hold `text`."""

    path: str
    text: str

    def shows(self, content: str | None) -> bool:
        """Whether the content (None: no such file) shows the sign."""
        return content is not None and self.text not in content


@dataclass(frozen=True, kw_only=True)
class NoFile:
    """A sign: there is no such file in the tree."""

    path: str

    def shows(self, content: str | None) -> bool:
        """Whether the content (None: no such file) shows the sign."""
        return content is None


Sign = Contains | Lacks | NoFile


@dataclass(frozen=True, kw_only=True)
class Because:
    """A state of upstream's source recognised by all of its signs, with the reason a reader is given."""

    signs: tuple[Sign, ...]
    why: str
    releases: str = ""

    def __post_init__(self) -> None:
        if not self.signs:
            raise ConfigurationError(f"nothing recognises: {self.why}")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way the fault is written in upstream's source, with the edits that mend it there.

    `releases` narrows where it is looked for (a PEP 440 range, empty for all); the edits' exact matches decide.
    `requires` are further signs that must show for the fault to be there.
    """

    edits: tuple[Edit, ...]
    releases: str = ""
    requires: tuple[Sign, ...] = ()

    def __post_init__(self) -> None:
        SpecifierSet(self.releases)
        if not self.edits:
            raise ConfigurationError("a variant without edits mends nothing")


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One fix: what fails and for whom, how the fault and its upstream fix are recognised, when it can go.

    The name of a patch is the name of its file. `kind` is `python` when no compiled object depends on the files
    touched, else `native`, and then `objects` are globs over object paths below the build tree that it changes.
    A `detector` has signs of the fault in `fault` and no edits: where the fault shows, it is reported as drifted,
    because nothing here mends it. A `setting` is a row without edits or fault: where upstream lacks something that
    a setting gives, its signs say `not-applicable` and the text says what to set.
    """

    title: str
    """One line: what is wrong, for whom."""
    releases: str
    """PEP 440 range in which the fault is known; empty when every release has it."""
    kind: Literal["python", "native"]
    category: Literal["temporary", "environment", "deliberate"]
    """temporary: upstream will have it; environment: this machine differs; deliberate: we choose otherwise."""
    reference: str
    """Upstream issue, pull request or file and line."""
    remove_when: str
    """A condition a person or a machine can check."""
    guarded_by: str
    """pytest id (file or file::test) of the evidence: red on the unpatched tree, green on the patched one."""
    variants: tuple[Variant, ...] = ()
    upstream: tuple[Because, ...] = ()
    not_applicable: tuple[Because, ...] = ()
    fault: tuple[Because, ...] = ()
    setting: str = ""
    """What to set instead of a patch."""
    objects: tuple[str, ...] = ()
    after: tuple[str, ...] = field(default=())
    """Names of patches of the same component that must come first; all else goes by name."""

    def __post_init__(self) -> None:
        SpecifierSet(self.releases)
        if [bool(self.variants), bool(self.fault), bool(self.setting)].count(True) != 1:
            raise ConfigurationError(
                f"{self.title}: a patch has edits, or signs of the fault (a detector), or a setting"
            )
        if self.kind == "native" and not self.objects and self.variants:
            raise ConfigurationError(f"{self.title}: a native patch says which objects it changes")
        if self.kind == "python" and self.objects:
            raise ConfigurationError(f"{self.title}: a python patch changes no objects")


def covers(releases: str, version: str) -> bool:
    """Whether a PEP 440 range (empty: everything) covers a release, pre- and post-releases included."""
    return SpecifierSet(releases).contains(Version(version), prereleases=True)


def _shown(text: str) -> str:
    line = next((piece for piece in text.splitlines() if piece.strip()), text)
    return repr(line.strip()[:70])
