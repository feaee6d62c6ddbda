"""An engine, and the image that ./build.sh makes there with the shipped Dockerfile."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.image.engine import STAND_IN, Engine, make_trees, remove_stale, start

from sparkwright.image.docker import Docker
from sparkwright.paths import CHECKOUT, cache
from sparkwright.run import run

TAG = "sparkwright-test:smoke"
# What differs from a build for a Spark: the base image, four objects of vLLM, one FlashInfer module.
UNITS = "smoke"
ARGUMENTS = {"BASE_IMAGE": STAND_IN, "APT_SNAPSHOT": "", "JIT_MODULES": "norm"}
BUILD = (
    *("--platform", "linux/amd64", "--network", "host", "--units", UNITS, "--tag", TAG),
    *(word for name, value in ARGUMENTS.items() for word in ("--arg", f"{name}={value}")),
)
"""What ./build.sh is given for it."""
Script = Callable[..., str]


def build_command(context: Path, *, target: str, tag: str = "", **arguments: str) -> list[str | Path]:
    """`docker ...` for a stage of the Dockerfile in a context; without a tag nothing is made an image."""
    words: list[str | Path] = ["buildx", "build", "--network", "host", "--progress", "plain", "--target", target]
    words += ["--load", "--tag", tag] if tag else ["--output", "type=cacheonly"]
    given = ARGUMENTS | {"UNITS": UNITS} | arguments
    words += [word for name, value in given.items() for word in ("--build-arg", f"{name}={value}")]
    return [*words, context]


@dataclass(frozen=True, kw_only=True)
class Built:
    """What ./build.sh made."""

    checkout: Path
    """A clean clone."""
    record: dict[str, Any]
    """What it printed."""


@pytest.fixture(scope="package")
def engine() -> Iterator[Engine]:
    """A Docker engine; SPARKWRIGHT_IMAGE_STATE names a folder that keeps its build cache between runs."""
    if os.geteuid() != 0:
        assert not os.environ.get("CI"), "this needs root"
        pytest.skip("this needs root: mount namespaces and a Docker engine")
    states = cache() / "image-engine"
    remove_stale(states)
    kept = os.environ.get("SPARKWRIGHT_IMAGE_STATE")
    running = start(make_trees(), Path(kept) if kept else states / f"state-{os.getpid()}")
    try:
        yield running
    finally:
        running.stop()
        if not kept:
            shutil.rmtree(running.state, ignore_errors=True)


@pytest.fixture
def docker(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Docker:
    """The engine, for what asks for docker on PATH."""
    for name in ("DOCKER_HOST", "DOCKER_CONFIG", "PATH"):
        monkeypatch.setenv(name, engine.variables[name])
    return Docker()


@pytest.fixture(scope="package")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one commit with the files of this checkout as they are, so that none of its own is touched."""
    folder = tmp_path_factory.mktemp("clone")
    listed = run(["git", "-C", CHECKOUT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
    for name in filter(None, listed.split("\0")):
        if (CHECKOUT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, folder / name)
    git = ("git", "-C", folder, "-c", "user.name=test", "-c", "user.email=test@example.invalid")
    run([*git, "init", "--quiet"])
    run([*git, "remote", "add", "origin", "https://example.invalid/sparkwright.git"])
    run([*git, "add", "--all"])
    # The same time for the same files: the commit goes into the image, and what was built before is found again.
    dates = dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), "2026-01-01T00:00:00Z")
    run([*git, "commit", "--quiet", "--message", "Files under test"], env=os.environ | dates)
    with (folder / ".git" / "info" / "exclude").open("a") as exclude:
        exclude.write("/.venv\n")
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def call(clone: Path, name: str, *words: str, environment: dict[str, str], status: int = 0) -> str:
    """Run a script of a clone; what it printed for scripts or, if it is to end with a status, its messages."""
    done = subprocess.run(
        [f"./{name}", *words],
        cwd=clone,
        env=environment | {"SPARKWRIGHT_ROOT": str(clone)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, f"{name} {' '.join(words)}: {done.returncode}\n{done.stderr[-6000:]}"
    return done.stderr if status else done.stdout


@pytest.fixture
def script(clone: Path, docker: Docker) -> Script:
    """`script(name, *words, status=0)`: run ./build.sh or ./push.sh of the clone with the engine."""

    def go(name: str, *words: str, status: int = 0) -> str:
        return call(clone, name, *words, environment=docker.environment, status=status)

    return go


@pytest.fixture(scope="package")
def built(engine: Engine, clone: Path) -> Built:
    """The image, built and tested by ./build.sh."""
    printed = call(clone, "build.sh", *BUILD, "--json", environment=dict(engine.variables))
    return Built(checkout=clone, record=json.loads(printed))


@pytest.fixture(scope="package")
def image(built: Built) -> str:
    """Its tag."""
    return str(built.record["tag"])
