"""Loading patch files: names, order, and what is refused."""

from pathlib import Path

import pytest

from sparkwright.errors import ConfigurationError
from sparkwright.patching import series
from sparkwright.patching.model import Status
from sparkwright.patching.series import load_series
from sparkwright.patching.shell import ShellPatch

PYTHON = """\"\"\"Why.\"\"\"
from sparkwright.patching import Patch, Replace, Variant

PATCH = Patch(
    title="t", releases="", kind="{kind}", category="temporary", reference="r", remove_when="w",
    guarded_by="g", objects={objects}, after={after},
    variants=(Variant(edits=(Replace(path="{path}", old="a", new="b"),)),),
)
"""

SHELL = """#!/usr/bin/env bash
# Why this is.
#
# Title: t
# Kind: native
# Category: environment
# Reference: r
# Remove-When: w
# Guarded-By: g
# Files: a.txt
case $1 in
check) printf '%s\\n' "{answer}" ;;
apply) printf 'new\\n' >"$2/a.txt" ;;
esac
"""


def write(folder: Path, name: str, *, kind: str = "python", path: str = "vllm/a.py", after: str = "()") -> None:
    (folder / "vllm").mkdir(exist_ok=True, parents=True)
    objects = "('x',)" if kind == "native" else "()"
    text = PYTHON.format(kind=kind, path=path, after=after, objects=objects)
    (folder / "vllm" / name).write_text(text)


def write_shell(folder: Path, answer: str) -> Path:
    script = folder / "fix.sh"
    script.write_text(SHELL.format(answer=answer))
    script.chmod(0o755)
    return script


def test_order_is_by_name_but_after_comes_first(tmp_path: Path) -> None:
    write(tmp_path, "a_last.py", after="('z-first',)")
    write(tmp_path, "m_middle.py")
    write(tmp_path, "z_first.py")
    assert [named.name for named in load_series("vllm", tmp_path)] == ["m-middle", "z-first", "a-last"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"after": "('nobody',)"}, "does not exist"),
        ({"after": "('p',)"}, "circle"),
        ({"path": "csrc/a.cu"}, "compile input"),
        ({"path": "setup.py"}, "compile input"),
        ({"path": "../a.py"}, "inside the tree"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, arguments: dict[str, str], message: str) -> None:
    write(tmp_path, "p.py", **arguments)
    with pytest.raises(ConfigurationError, match=message):
        load_series("vllm", tmp_path)


def test_a_definition_covers_the_files_that_the_patch_adds(tmp_path: Path) -> None:
    source = tmp_path / "p.py"
    source.write_text(
        f"""
from pathlib import Path
from sparkwright.patching import AddFile, Patch, Variant
TEXT = Path({str(tmp_path / "header.h")!r}).read_text()
PATCH = Patch(
    title="t", releases="", kind="native", category="temporary", reference="r", remove_when="w", guarded_by="g",
    objects=("x",), variants=(Variant(edits=(AddFile(path="a.h", text=TEXT),)),),
)
"""
    )
    definitions = set()
    for text in ("int a;\n", "int b;\n"):
        (tmp_path / "header.h").write_text(text)
        series._load_module.cache_clear()
        definitions.add(series.load_patch(source, "vllm").definition)
    assert len(definitions) == 2


def test_a_file_without_a_patch_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "p.py")
    (tmp_path / "vllm/q.py").write_text("x = 1\n")
    with pytest.raises(ConfigurationError, match="defines no PATCH"):
        load_series("vllm", tmp_path)


def test_a_shell_patch_answers_and_edits_a_copy(tmp_path: Path) -> None:
    script = write_shell(tmp_path, "needed\tthe reason")
    patch = ShellPatch.read(script)
    assert patch.explanation == "Why this is."
    assert patch.check(tmp_path) == (Status.NEEDED, "the reason")

    class Held:
        def read(self, path: str) -> bytes | None:
            return b"old\n" if path == "a.txt" else None

    assert patch.apply(Held()) == {"a.txt": b"new\n"}
    assert not (tmp_path / "a.txt").exists()


@pytest.mark.parametrize("answer", ["fine", "", "needed\tx\nneeded\ty"])
def test_a_shell_patch_that_does_not_answer_is_refused(tmp_path: Path, answer: str) -> None:
    with pytest.raises(ConfigurationError, match="check answered"):
        ShellPatch.read(write_shell(tmp_path, answer)).check(tmp_path)


def test_a_shell_patch_without_its_header_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "fix.sh"
    script.write_text("#!/usr/bin/env bash\n# Title: t\n")
    with pytest.raises(ConfigurationError, match="Guarded-By"):
        ShellPatch.read(script)
