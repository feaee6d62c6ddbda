"""Programs that stand for docker and ssh: they note how they were called, and answer as a test tells them."""

import json
import os
import shlex
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

_PROGRAM = """#!/bin/bash
# Not Python, whose start takes longer than all else that a test does.
here={folder}
line="${{0##*/}} $*"
printf '%s\\0' "${{0##*/}}" "$@" $'\\n' >>"$here/calls"
"""
_RULE = """if [[ {when} ]]; then
    {receive}
    {send}
    printf %s {out}
    printf %s {err} >&2
    exit {status}
fi
"""


class Programs:
    """The stand-ins for docker and ssh, and what they are to say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rules: list[str] = []
        folder.mkdir()
        self._write()

    def _write(self) -> None:
        text = _PROGRAM.format(folder=shlex.quote(str(self.folder))) + "".join(self._rules)
        for name in ("docker", "ssh"):
            path = self.folder / name
            path.write_text(text)
            path.chmod(0o755)

    def answer(
        self,
        *when: str,
        out: str = "",
        err: str = "",
        status: int = 0,
        read: int = 0,
        file: str = "",
        pass_on: bool = False,
    ) -> None:
        """When all words of `when` are in a command line; the latest rule wins.

        It takes `read` bytes from standard input, all of them when it is negative, and sends `file` before `out`; or it
        has bash do what the last word says.
        """
        received = shlex.quote(str(self.folder / "received"))
        receive = f"head -c {read} >{received}" if read > 0 else f"cat >{received}" if read else ":"
        rule = _RULE.format(
            when=" && ".join(f"$line == *{shlex.quote(part)}*" for part in when),
            receive=receive,
            send='exec bash -c "${!#}"' if pass_on else f"cat {shlex.quote(file)}" if file else ":",
            out=shlex.quote(out),
            err=shlex.quote(err),
            status=status,
        )
        self._rules.insert(0, rule)
        self._write()

    def remove(self, name: str) -> None:
        """As if the program were not installed."""
        (self.folder / name).unlink()

    def calls(self, *words: str) -> list[list[str]]:
        """The command lines so far that hold all these words."""
        path = self.folder / "calls"
        lines = [line.split("\0")[:-1] for line in path.read_text().split("\n\0")[:-1]] if path.exists() else []
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
        "sparkwright.vllm.commit": "4ba787ec9",
        "sparkwright.vllm.version": LINE,
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
