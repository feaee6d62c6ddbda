"""Patches written in shell: a script with a header of `# Key: value` lines and three arguments.

`NAME.sh check TREE` prints one line, a status word, a tab and the reason, and writes nothing.
`NAME.sh apply TREE` and `NAME.sh revert TREE` edit only the files that the header's Files line names; the
engine runs them on a copy of those files, so that a shell patch is all-or-nothing like any other.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from sparkwright.errors import ConfigurationError
from sparkwright.patching.model import Status
from sparkwright.patching.tree import Tree
from sparkwright.run import run

_Kind = Literal["python", "native"]
_Category = Literal["temporary", "environment", "deliberate"]
_HEADER = re.compile(r"^# ([A-Z][A-Za-z-]+): (.+)$")
_REQUIRED = ("Title", "Kind", "Category", "Reference", "Remove-When", "Guarded-By")


@dataclass(frozen=True, kw_only=True)
class ShellPatch:
    """The metadata of a shell patch; the fields mean what they mean in Patch."""

    script: Path
    title: str
    releases: str
    kind: _Kind
    category: _Category
    reference: str
    remove_when: str
    guarded_by: str
    files: tuple[str, ...]
    explanation: str

    @classmethod
    def read(cls, script: Path) -> "ShellPatch":
        """Read the header of a script.

        Raises:
            ConfigurationError: a field is missing or has an unknown value.
        """
        header: dict[str, str] = {}
        prose: list[str] = []
        for line in script.read_text(encoding="utf-8").splitlines()[1:]:
            if not line.startswith("#"):
                break
            if found := _HEADER.match(line):
                header[found[1]] = found[2].strip()
            else:
                prose.append(line.removeprefix("#").removeprefix(" "))
        if missing := [key for key in _REQUIRED if key not in header]:
            raise ConfigurationError(f"{script} says nothing about {', '.join(missing)} in its header")
        kind, category = header["Kind"], header["Category"]
        if kind not in get_args(_Kind) or category not in get_args(_Category):
            raise ConfigurationError(f"{script}: unknown Kind {kind!r} or Category {category!r}")
        return cls(
            script=script,
            title=header["Title"],
            releases=header.get("Releases", ""),
            kind="python" if kind == "python" else "native",
            category="temporary"
            if category == "temporary"
            else "deliberate"
            if category == "deliberate"
            else "environment",
            reference=header["Reference"],
            remove_when=header["Remove-When"],
            guarded_by=header["Guarded-By"],
            files=tuple(header.get("Files", "").split()),
            explanation="\n".join(prose).strip(),
        )

    def check(self, root: Path) -> tuple[Status, str]:
        """Ask the script what it is to the tree at `root`."""
        answer = run([self.script, "check", root]).strip()
        word, _, reason = answer.partition("\t")
        if word not in set(Status) or "\n" in answer:
            raise ConfigurationError(f"{self.script} check answered {answer!r}, not a status, a tab and a reason")
        return Status(word), reason

    def apply(self, tree: Tree) -> dict[str, bytes]:
        """What the script makes of its files, without touching the tree."""
        with tempfile.TemporaryDirectory(prefix="sparkwright-") as name:
            scratch = Path(name)
            for path in self.files:
                content = tree.read(path)
                if content is not None:
                    (scratch / path).parent.mkdir(parents=True, exist_ok=True)
                    (scratch / path).write_bytes(content)
            run([self.script, "apply", scratch])
            return {path: (scratch / path).read_bytes() for path in self.files if (scratch / path).is_file()}
