"""The engine of these tests leaves nothing behind, however its owner ends; and compose.yaml is one for real compose."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.image.engine import Engine, remove_stale

from sparkwright.paths import CHECKOUT

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]

_OWNER = """
import sys, time
from pathlib import Path
from tests.image.engine import make_trees, start
engine = start(make_trees(), Path(sys.argv[1]))
print(engine.process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_its_owner(engine: Engine, tmp_path: Path, number: signal.Signals) -> None:
    state = tmp_path / "state"
    owner = subprocess.Popen([sys.executable, "-c", _OWNER, state], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    first = psutil.Process(int(owner.stdout.readline()))
    started = [first, *first.children(recursive=True)]
    assert any(process.name() == "dockerd" for process in started)
    owner.send_signal(number)
    owner.wait()
    owner.stdout.close()
    _, left = psutil.wait_procs(started, timeout=15)
    assert not left
    mounts = Path("/proc/self/mounts").read_text()
    assert str(state) not in mounts
    assert str(engine.trees.engine) not in mounts


def test_what_dead_owners_left_is_removed(tmp_path: Path) -> None:
    dead, alive = tmp_path / "state-4194303", tmp_path / f"state-{psutil.Process().pid}"
    for folder in (dead, alive):
        (folder / "data").mkdir(parents=True)
    remove_stale(tmp_path)
    assert not dead.exists()
    assert alive.exists()


def test_compose_takes_the_file_of_each_profile(engine: Engine, tmp_path: Path) -> None:
    text = (CHECKOUT / "compose.yaml").read_text(encoding="utf-8")
    (tmp_path / ".env").write_text((CHECKOUT / ".env.example").read_text(encoding="utf-8"))
    path = tmp_path / "compose.yaml"
    for profile in ("serve", "nodes", "head", "worker"):
        path.write_text(text, encoding="utf-8")
        engine.docker("compose", "--file", path, "--profile", profile, "config", "--quiet")
    path.write_text(text.replace("network_mode:", "network_mod:"), encoding="utf-8")
    said = engine.docker("compose", "--file", path, "--profile", "serve", "config", "--quiet", fails=True)
    assert "network_mod" in said
