"""Programs that stand for docker and ssh: they note how they were called, and answer as a test tells them."""

import json
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sparkwright.image.revision import Revision
from sparkwright.pins import default_line

LINE = default_line()
IMAGE = "sha256:" + "a" * 64
REVISION = Revision(
    commit="1a2b3c4d" * 5, count=214, time=1795266340, dirty=False, source="https://example.org/sparkwright"
)
TAG = f"sparkwright:{LINE}-214-g1a2b3c4d"

_PROGRAM = """#!{python} -IS
import json, os, pathlib, sys
here = pathlib.Path(__file__).resolve().parent
name, words = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with (here / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps([name, *words]) + "\\n")
for rule in json.loads((here / "rules.json").read_text()):
    when = rule["when"]
    line = " ".join([name, *words])
    if all(part in line for part in when):
        if rule.get("read"):
            data = sys.stdin.buffer.read(rule["read"] if rule["read"] > 0 else -1)
            (here / "received").write_bytes(data)
        if file := rule.get("file"):
            sys.stdout.buffer.write(pathlib.Path(file).read_bytes())
        if rule.get("pass_on"):
            os.execvp("bash", ["bash", "-c", words[-1]])
        sys.stdout.write(rule.get("out", ""))
        sys.stderr.write(rule.get("err", ""))
        sys.exit(rule.get("status", 0))
"""


class Programs:
    """The stand-ins for docker and ssh, and what they are to say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rules: list[dict[str, Any]] = []
        folder.mkdir()
        for name in ("docker", "ssh"):
            path = folder / name
            path.write_text(_PROGRAM.format(python=sys.executable))
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        (folder / "rules.json").write_text("[]")

    def answer(self, *when: str, **rule: object) -> None:
        """When all words of `when` are in a command line; the latest rule wins."""
        self._rules.insert(0, {"when": list(when), **rule})
        (self.folder / "rules.json").write_text(json.dumps(self._rules))

    def remove(self, name: str) -> None:
        """As if the program were not installed."""
        (self.folder / name).unlink()

    def calls(self, *words: str) -> list[list[str]]:
        """The command lines so far that hold all these words."""
        path = self.folder / "calls.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if all(word in line for word in words)]

    @property
    def received(self) -> bytes:
        """What a rule with `read` took from its standard input."""
        return (self.folder / "received").read_bytes()


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Only these, and what the system itself needs, are on PATH."""
    made = Programs(tmp_path / "programs")
    monkeypatch.setenv("PATH", f"{made.folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
    return made


def engine_info(**changes: object) -> str:
    """What `docker info` says on a Spark."""
    return json.dumps(
        {
            "Architecture": "aarch64",
            "NCPU": 20,
            "MemTotal": 128_000_000_000,
            "DockerRootDir": "/",
            "Name": os.uname().nodename,
            "Runtimes": {"runc": {}},
            **changes,
        }
    )


def inspected(
    *, labels: dict[str, str] | None = None, layers: Sequence[str] = ("sha256:" + "1" * 64,)
) -> dict[str, Any]:
    """What `docker image inspect` says of a good image."""
    good = {
        "org.opencontainers.image.revision": REVISION.full,
        "org.opencontainers.image.version": TAG.rpartition(":")[2],
        "org.opencontainers.image.created": REVISION.created,
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.title": "sparkwright",
        "sparkwright.line": LINE,
        "sparkwright.pins.sha256": "c" * 64,
        "sparkwright.patches": "vllm/one",
        "sparkwright.units": "native",
    }
    return {
        "Id": IMAGE,
        "RepoTags": [TAG],
        "Created": REVISION.created,
        "Size": 7_700_000_000,
        "RootFS": {"Type": "layers", "Layers": list(layers)},
        "Config": {
            "Entrypoint": ["/opt/sparkwright/entrypoint.sh"],
            "Healthcheck": {"Test": ["CMD", "/opt/sparkwright/entrypoint.sh", "health"]},
            "StopSignal": "SIGTERM",
            "Env": ["PATH=/usr/bin", "CUDA_HOME=/usr/local/cuda"],
            "Labels": good | (labels or {}),
        },
    }
