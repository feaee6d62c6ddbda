"""The engine's promises on small trees: exact, all or nothing, reversible, crash-safe."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dying import Killed, count_writes

from sparkwright.errors import InputUnreadableError, LockedError, OutputError, PatchDriftError
from sparkwright.files import exclusive_lock
from sparkwright.patching import (
    AddFile,
    Because,
    Computed,
    Contains,
    InsertAfter,
    InsertBefore,
    Lacks,
    NoFile,
    Patch,
    Replace,
    Status,
    Variant,
)
from sparkwright.patching.engine import apply_series, examine, revert_series, unified_diff
from sparkwright.patching.model import Edit, EditMismatchError
from sparkwright.patching.series import NamedPatch

VERSION = "1.0"


def make_patch(*edits: Edit, releases: str = "", **more: object) -> Patch:
    fields: dict[str, object] = {
        "title": "a fault",
        "releases": releases,
        "kind": "native",
        "category": "temporary",
        "reference": "upstream",
        "remove_when": "never",
        "guarded_by": "here",
        "objects": ("*.o",),
        "variants": (Variant(edits=edits),) if edits else (),
    }
    return Patch(**(fields | more))  # type: ignore[arg-type]


def named(name: str, patch: Patch, definition: str = "d") -> NamedPatch:
    return NamedPatch(name=name, component="vllm", source=Path(f"{name}.py"), definition=definition, patch=patch)


def make_tree(root: Path, files: dict[str, bytes]) -> Path:
    for path, content in {"vllm/__init__.py": b"", **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def statuses(root: Path, *series: NamedPatch, version: str = VERSION) -> dict[str, Status]:
    return {found.patch.name: found.status for found in examine(root, "vllm", version, series=series).findings}


FIX = named("fix", make_patch(Replace(path="a.txt", old="wrong\n", new="right\n")))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree", {"a.txt": b"one\nwrong\ntwo\n", "b/c.txt": b"x = 1\n"})


def test_apply_then_again_then_revert(tree: Path) -> None:
    before = snapshot(tree)
    assert statuses(tree, FIX) == {"fix": Status.NEEDED}
    apply_series(tree, "vllm", VERSION, series=[FIX])
    assert (tree / "a.txt").read_text() == "one\nright\ntwo\n"
    after = snapshot(tree)
    stamp = (tree / "a.txt").stat().st_mtime_ns
    apply_series(tree, "vllm", VERSION, series=[FIX])
    assert snapshot(tree) == after
    assert (tree / "a.txt").stat().st_mtime_ns == stamp
    assert statuses(tree, FIX) == {"fix": Status.APPLIED}
    revert_series(tree, "vllm", VERSION, series=[FIX])
    assert snapshot(tree) == before
    assert not (tree / ".sparkwright").exists()


def test_revert_leaves_what_others_keep_in_the_state_folder(tree: Path) -> None:
    make_tree(tree, {".sparkwright/unpacked.json": b"{}"})
    before = snapshot(tree)
    apply_series(tree, "vllm", VERSION, series=[FIX])
    revert_series(tree, "vllm", VERSION, series=[FIX])
    assert snapshot(tree) == before


def test_status_writes_nothing(tree: Path) -> None:
    before = snapshot(tree)
    examine(tree, "vllm", VERSION, series=[FIX])
    assert snapshot(tree) == before


def test_receipt_lists_every_patch_with_hashes(tree: Path) -> None:
    later = named("later", make_patch(Replace(path="a.txt", old="right", new="best"), after=("fix",)))
    absent = named(
        "absent",
        make_patch(
            Replace(path="gone.txt", old="x", new="y"),
            not_applicable=(Because(signs=(NoFile(path="gone.txt"),), why="no such feature"),),
        ),
    )
    apply_series(tree, "vllm", VERSION, series=[FIX, later, absent])
    receipt = json.loads((tree / ".sparkwright/patches.json").read_text())
    first, second, third = receipt["patches"]
    assert [entry["status"] for entry in receipt["patches"]] == ["applied", "applied", "not-applicable"]
    assert first["files"][0]["after"] == second["files"][0]["before"]
    assert third["files"] == []


def test_one_drifted_patch_stops_all(tree: Path) -> None:
    drifted = named("drifted", make_patch(Replace(path="b/c.txt", old="x = 2", new="x = 3")))
    before = snapshot(tree)
    with pytest.raises(PatchDriftError, match="drifted: neither the fault nor the upstream fix") as caught:
        apply_series(tree, "vllm", VERSION, series=[FIX, drifted])
    assert caught.value.exit_code == 3
    assert snapshot(tree) == before


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"wrong\n", Status.NEEDED),
        (b"right\n", Status.APPLIED),
        (b"fixed upstream\n", Status.UPSTREAM),
        (b"wrong\nwrong\n", Status.DRIFTED),
        (b"wr0ng\n", Status.DRIFTED),
        (b"", Status.DRIFTED),
    ],
)
def test_the_source_decides(tmp_path: Path, content: bytes, expected: Status) -> None:
    root = make_tree(tmp_path / "tree", {"a.txt": content})
    patch = make_patch(
        Replace(path="a.txt", old="wrong\n", new="right\n"),
        upstream=(Because(signs=(Contains(path="a.txt", text="fixed"), Lacks(path="a.txt", text="wrong")), why="w"),),
        not_applicable=(Because(signs=(NoFile(path="a.txt"),), why="w"),),
    )
    assert statuses(root, named("p", patch)) == {"p": expected}


def test_outside_its_releases_a_patch_must_recognise_the_fix(tree: Path) -> None:
    patch = make_patch(Replace(path="a.txt", old="wrong\n", new="right\n"), releases="<1.0")
    assert statuses(tree, named("p", patch)) == {"p": Status.DRIFTED}
    assert statuses(tree, named("p", patch), version="0.9.post1") == {"p": Status.NEEDED}


def test_a_detector_reports_its_fault_as_drifted(tree: Path) -> None:
    patch = make_patch(
        variants=(),
        fault=(Because(signs=(Contains(path="a.txt", text="wrong"),), why="doubled prefix"),),
        not_applicable=(Because(signs=(Lacks(path="a.txt", text="wrong"),), why="no prefix"),),
    )
    assert statuses(tree, named("p", patch)) == {"p": Status.DRIFTED}
    (tree / "a.txt").write_text("fine")
    assert statuses(tree, named("p", patch)) == {"p": Status.NOT_APPLICABLE}


def test_added_files_disappear_on_revert_and_are_never_overwritten(tree: Path) -> None:
    patch = named("p", make_patch(AddFile(path="new/file.h", text="int x;\n")))
    before = snapshot(tree)
    apply_series(tree, "vllm", VERSION, series=[patch])
    assert (tree / "new/file.h").read_text() == "int x;\n"
    revert_series(tree, "vllm", VERSION, series=[patch])
    assert snapshot(tree) == before
    make_tree(tree, {"new/file.h": b"theirs"})
    with pytest.raises(PatchDriftError):
        apply_series(tree, "vllm", VERSION, series=[patch])
    assert (tree / "new/file.h").read_bytes() == b"theirs"


def test_a_changed_definition_is_applied_again_and_touches_only_what_differs(tree: Path) -> None:
    other = named("other", make_patch(Replace(path="b/c.txt", old="x = 1", new="x = 2")))
    apply_series(tree, "vllm", VERSION, series=[FIX, other])
    stamp = (tree / "b/c.txt").stat().st_mtime_ns
    newer = named("fix", make_patch(Replace(path="a.txt", old="wrong\n", new="better\n")), definition="e")
    assert statuses(tree, newer, other) == {"fix": Status.NEEDED, "other": Status.APPLIED}
    apply_series(tree, "vllm", VERSION, series=[newer, other])
    assert (tree / "a.txt").read_text() == "one\nbetter\ntwo\n"
    assert (tree / "b/c.txt").stat().st_mtime_ns == stamp
    apply_series(tree, "vllm", VERSION, series=[newer])
    assert (tree / "b/c.txt").read_text() == "x = 1\n"


def test_a_file_edited_after_patching_is_drift_and_is_not_lost(tree: Path) -> None:
    apply_series(tree, "vllm", VERSION, series=[FIX])
    (tree / "a.txt").write_text("my own work\n")
    assert statuses(tree, FIX) == {"fix": Status.DRIFTED}
    for act in (apply_series, revert_series):
        with pytest.raises(PatchDriftError):
            act(tree, "vllm", VERSION, series=[FIX])
    assert (tree / "a.txt").read_text() == "my own work\n"


def test_a_tree_patched_by_hand_counts_as_applied_and_is_left_alone(tree: Path) -> None:
    (tree / "a.txt").write_text("one\nright\ntwo\n")
    assert statuses(tree, FIX) == {"fix": Status.APPLIED}
    apply_series(tree, "vllm", VERSION, series=[FIX])
    revert_series(tree, "vllm", VERSION, series=[FIX])
    assert (tree / "a.txt").read_text() == "one\nright\ntwo\n"


def test_receipts_that_do_not_fit_are_refused(tree: Path) -> None:
    apply_series(tree, "vllm", VERSION, series=[FIX])
    with pytest.raises(InputUnreadableError, match=r"patched as vllm 1\.0"):
        examine(tree, "vllm", "2.0", series=[FIX])
    (tree / ".sparkwright/originals/a.txt").write_text("forged")
    with pytest.raises(PatchDriftError, match="kept original"):
        revert_series(tree, "vllm", VERSION, series=[FIX])
    (tree / ".sparkwright/patches.json").write_text("{}")
    with pytest.raises(InputUnreadableError, match="not a receipt"):
        apply_series(tree, "vllm", VERSION, series=[FIX])


def test_a_wrong_folder_is_not_a_tree_in_which_nothing_is_to_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(InputUnreadableError):
            examine(root, "vllm", VERSION, series=[FIX])


def test_two_runs_at_once_are_refused(tree: Path) -> None:
    with exclusive_lock(tree, doing="patching"), pytest.raises(LockedError):
        apply_series(tree, "vllm", VERSION, series=[FIX])


def test_an_unwritable_tree_is_not_changed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests may run as root, whom permissions do not stop: so the answer of the system is replaced.
    monkeypatch.setattr(os, "access", lambda *_: False)
    before = snapshot(tree)
    with pytest.raises(OutputError, match="nothing was changed"):
        apply_series(tree, "vllm", VERSION, series=[FIX])
    assert snapshot(tree) == before


def test_every_byte_survives(tree: Path) -> None:
    content = b"\xff\xfe\r\nwrong\n\x00\x80"
    (tree / "a.txt").write_bytes(content)
    (tree / "a.txt").chmod(0o755)
    apply_series(tree, "vllm", VERSION, series=[FIX])
    assert (tree / "a.txt").read_bytes() == content.replace(b"wrong", b"right")
    assert (tree / "a.txt").stat().st_mode & 0o777 == 0o755
    revert_series(tree, "vllm", VERSION, series=[FIX])
    assert (tree / "a.txt").read_bytes() == content


def test_diff_shows_what_would_change(tree: Path) -> None:
    diff = unified_diff(examine(tree, "vllm", VERSION, series=[FIX]))
    assert "-wrong\n+right\n" in diff
    assert diff.startswith("--- a/a.txt\n+++ b/a.txt\n")
    apply_series(tree, "vllm", VERSION, series=[FIX])
    assert unified_diff(examine(tree, "vllm", VERSION, series=[FIX])) == ""


@pytest.mark.parametrize("act", [apply_series, revert_series])
def test_killed_at_any_write_leaves_the_old_tree_or_the_new_one(
    tmp_path: Path, act: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = named(
        "p",
        make_patch(
            Replace(path="a.txt", old="wrong\n", new="right\n"),
            InsertAfter(path="b/c.txt", anchor="x = 1\n", text="y = 2\n"),
            AddFile(path="new/file.h", text="int x;\n"),
        ),
    )

    def prepare(name: str) -> Path:
        root = make_tree(tmp_path / name, {"a.txt": b"one\nwrong\ntwo\n", "b/c.txt": b"x = 1\n"})
        if act is revert_series:
            apply_series(root, "vllm", VERSION, series=[patch])
        return root

    def user_files(root: Path) -> dict[str, bytes]:
        return {path: content for path, content in snapshot(root).items() if not path.startswith(".sparkwright/")}

    with monkeypatch.context() as patched:
        root = prepare("whole")
        old = user_files(root)
        count = count_writes(patched, None)
        act(root, "vllm", VERSION, series=[patch])
        new, writes = user_files(root), count()
    assert writes > 5
    outcomes = set()
    for kill_at in range(1, writes + 1):
        root = prepare(f"kill-{kill_at}")
        with monkeypatch.context() as patched:
            count_writes(patched, kill_at)
            with pytest.raises(Killed):
                act(root, "vllm", VERSION, series=[patch])
        examination = examine(root, "vllm", VERSION, series=[patch])
        seen = {path: examination.current.read(path) for path in {*old, *new}}
        seen = {path: content for path, content in seen.items() if content is not None}
        assert seen in (old, new), kill_at
        outcomes.add(seen == new)
        act(root, "vllm", VERSION, series=[patch])
        assert user_files(root) == new, kill_at
        assert not examine(root, "vllm", VERSION, series=[patch]).interrupted
    assert outcomes == {True, False}


_TEXT = st.text(alphabet="abcdef \n", min_size=1, max_size=30)


@st.composite
def _files_and_edits(draw: st.DrawFn) -> tuple[dict[str, str], list[Edit]]:
    """Trees of up to three files with unique anchors, and edits over them."""
    files: dict[str, str] = {}
    edits: list[Edit] = []
    for number in range(draw(st.integers(1, 3))):
        path = f"dir{number}/file.txt"
        pieces = [draw(_TEXT)]
        for mark in range(draw(st.integers(1, 3))):
            anchor = f"<anchor {number}.{mark}>{draw(_TEXT)}<end>"
            count = draw(st.integers(1, 2))
            for _ in range(count):
                pieces += [anchor, draw(_TEXT)]
            new = f"[new {number}.{mark}]{draw(_TEXT)}"
            choices: list[Edit] = [
                Replace(path=path, old=anchor, new=new, count=count),
                InsertBefore(path=path, anchor=anchor, text=new, count=count),
                InsertAfter(path=path, anchor=anchor, text=new, count=count),
            ]
            edits.append(draw(st.sampled_from(choices)))
        files[path] = "".join(pieces)
    if draw(st.booleans()):
        edits.append(AddFile(path="added/file.txt", text=draw(_TEXT)))
    return files, edits


@settings(max_examples=60, deadline=None)
@given(data=_files_and_edits())
def test_any_edits_apply_then_revert_restores(
    tmp_path_factory: pytest.TempPathFactory, data: tuple[dict[str, str], list[Edit]]
) -> None:
    files, edits = data
    root = make_tree(tmp_path_factory.mktemp("tree"), {path: text.encode() for path, text in files.items()})
    series = [named(f"p{number}", make_patch(edit)) for number, edit in enumerate(edits)]
    before = snapshot(root)
    assert set(statuses(root, *series).values()) == {Status.NEEDED}
    apply_series(root, "vllm", VERSION, series=series)
    assert set(statuses(root, *series).values()) == {Status.APPLIED}
    assert snapshot(root) != before
    revert_series(root, "vllm", VERSION, series=series)
    assert snapshot(root) == before


@settings(max_examples=60, deadline=None)
@given(data=_files_and_edits(), draw=st.data())
def test_any_changed_byte_inside_an_anchor_is_drift(
    tmp_path_factory: pytest.TempPathFactory, data: tuple[dict[str, str], list[Edit]], draw: st.DataObject
) -> None:
    files, edits = data
    edit = draw.draw(st.sampled_from([edit for edit in edits if not isinstance(edit, AddFile)]))
    anchor = edit.old if isinstance(edit, Replace) else edit.anchor if not isinstance(edit, Computed) else ""
    place = files[edit.path].index(anchor) + draw.draw(st.integers(0, len(anchor) - 1))
    content = bytearray(files[edit.path].encode())
    content[place] ^= draw.draw(st.integers(1, 255))
    contents = {path: text.encode() for path, text in files.items()} | {edit.path: bytes(content)}
    root = make_tree(tmp_path_factory.mktemp("tree"), contents)
    series = [named(f"p{number}", make_patch(each)) for number, each in enumerate(edits)]
    before = snapshot(root)
    assert statuses(root, *series)[f"p{edits.index(edit)}"] is Status.DRIFTED
    with pytest.raises(PatchDriftError):
        apply_series(root, "vllm", VERSION, series=series)
    assert snapshot(root) == before


def test_a_computed_edit_decides_for_itself(tree: Path) -> None:
    def compute(text: str) -> str:
        if "x = 1" not in text:
            raise EditMismatchError("no x")
        return text.replace("x = 1", "x = 1;12.1")

    edit = Computed(path="b/c.txt", compute=compute, done=lambda text: ";12.1" in text, describe="append 12.1")
    patch = named("p", make_patch(edit))
    apply_series(tree, "vllm", VERSION, series=[patch])
    assert (tree / "b/c.txt").read_text() == "x = 1;12.1\n"
    assert statuses(tree, patch) == {"p": Status.APPLIED}
    (tree / "b/c.txt").write_text("x = 7\n")
    assert statuses(tree, patch) == {"p": Status.DRIFTED}
