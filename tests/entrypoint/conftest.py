"""entrypoint.sh with stub `vllm` and `ray` on PATH that record how they were started."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sparkwright.paths import CHECKOUT

ENTRYPOINT = CHECKOUT / "entrypoint.sh"

_STUB = """#!{python}
import json, os, sys
name = os.path.basename(sys.argv[0])
folder = os.environ["STUB_RECORDS"]
record = {{"argv": [name, *sys.argv[1:]], "env": dict(os.environ), "pid": os.getpid(), "uid": os.getuid()}}
with open(os.path.join(folder, f"{{len(os.listdir(folder))}}-{{name}}.json"), "w") as stream:
    json.dump(record, stream)
sys.exit(int(os.environ.get(f"STUB_{{name.upper()}}_STATUS", "0")))
"""

# What `import ray` finds in the tests: the nodes that the test has written down.
_RAY_MODULE = """import json, os
def init(address, log_to_driver):
    assert address == os.environ["RAY_ADDRESS"]
def nodes():
    with open(os.environ["STUB_NODES"]) as stream:
        return json.load(stream)
"""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How a start went: status, both streams, the process, and what the stubs recorded."""

    status: int
    stdout: str
    stderr: str
    pid: int
    records: list[dict[str, Any]]

    @property
    def plan(self) -> dict[str, Any]:
        """The JSON of --dry-run."""
        plan: dict[str, Any] = json.loads(self.stdout)
        return plan

    @property
    def record(self) -> dict[str, Any]:
        """The one program that was started."""
        assert len(self.records) == 1, self.stderr
        return self.records[0]


def as_user(root: bool) -> list[str]:
    """The prefix that runs a command as root or as a user without rights to write anywhere."""
    if os.geteuid() == 0:
        other = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
        # It may read the checkout wherever that lies, and nothing more.
        return [] if root else [*other, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["unshare", "--user", "--map-root-user"] if root else []


class Entrypoint:
    """Runs entrypoint.sh in an environment that holds nothing but what the test says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin, self.records, self.home, self.tmp = (folder / name for name in ("bin", "records", "home", "tmp"))
        for path in (folder, self.bin, self.records, self.home, self.tmp):
            path.mkdir(exist_ok=True)
            path.chmod(0o777)
        for name in ("vllm", "ray"):
            stub = self.bin / name
            stub.write_text(_STUB.format(python=sys.executable), encoding="utf-8")
            stub.chmod(0o755)
        module = folder / "modules" / "ray"
        module.mkdir(parents=True)
        (module / "__init__.py").write_text(_RAY_MODULE, encoding="utf-8")
        self.nodes = folder / "nodes.json"
        self.environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(self.home),
            "TMPDIR": str(self.tmp),
            "SPARKWRIGHT_PYTHON": sys.executable,
            "SPARKWRIGHT_VLLM_VERSION": "0.33.0",
            "STUB_RECORDS": str(self.records),
            "STUB_NODES": str(self.nodes),
            "PYTHONPATH": f"{module.parent}:{CHECKOUT / 'src'}",
        }

    def run(self, *words: str, env: Mapping[str, str] | None = None, prefix: Sequence[str] = ()) -> Ran:
        """Start it and wait for its end."""
        environment = {name: value for name, value in {**self.environment, **(env or {})}.items() if value != "UNSET"}
        process = subprocess.Popen(
            [*prefix, str(ENTRYPOINT), *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )
        stdout, stderr = process.communicate(timeout=60)
        records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.records.iterdir())]
        return Ran(status=process.returncode, stdout=stdout, stderr=stderr, pid=process.pid, records=records)

    def dry(self, *words: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The plan, which must succeed and start nothing."""
        ran = self.run("--dry-run", *words, env=env)
        assert ran.status == 0, ran.stderr
        assert ran.records == []
        return ran.plan


@pytest.fixture
def entrypoint() -> Iterator[Entrypoint]:
    """A fresh entrypoint with stubs, in a folder that every user may pass through; pytest's own are its user's."""
    with tempfile.TemporaryDirectory(prefix="entrypoint-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Entrypoint(Path(folder) / "start")
