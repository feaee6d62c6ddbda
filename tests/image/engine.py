"""A Docker engine of Debian's packages in a private mount namespace, and a stand-in for the Dockerfile's base image.

Nothing of it needs a registry, and nothing outlives the process that started it: the kernel ends the engine with it.
What it stores lies in the cache: the tree of programs is kept, images and build cache go when the engine stops.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from sparkwright.files import exclusive_lock
from sparkwright.paths import CHECKOUT, cache
from sparkwright.run import run

ENTER = CHECKOUT / "tests" / "image" / "enter_engine.sh"
SUITE = "trixie"
PACKAGES = ("docker-buildx", "docker-cli", "docker-compose", "docker.io", "iproute2", "iptables", "openssh-server")
HERE = {"mmdebstrap": "mmdebstrap", "ssh": "openssh-client"}
"""Programs that this machine itself needs, and the package of each."""
BUNDLE = "etc/ssl/certs/ca-certificates.crt"
STAND_IN = "sparkwright-stand-in:trixie"
DAEMON = (
    *("dockerd", "--data-root", "/state/data", "--exec-root", "/run/docker-exec", "--pidfile", "/run/docker.pid"),
    *("--host", "unix:///run/docker.sock", "--storage-driver", "overlay2", "--bridge=none"),
    *("--iptables=false", "--ip6tables=false", "--ip-masq=false", "--ip-forward=false"),
)
_START_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Trees:
    """The programs of the engine, and the file system of the stand-in."""

    engine: Path
    stand_in: Path
    """A tar file."""
    programs: Path
    """docker and its plugins, to be run from outside."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A running engine."""

    process: subprocess.Popen[bytes]
    state: Path
    trees: Trees

    @property
    def variables(self) -> Mapping[str, str]:
        """What a program needs in its environment to reach the engine with `docker`."""
        socket = self.state / "run" / "docker.sock"
        return os.environ | {
            "DOCKER_HOST": f"unix://{socket}",
            "DOCKER_CONFIG": str(self.trees.programs / "config"),
            "PATH": f"{self.trees.programs}:{os.environ['PATH']}",
        }

    def docker(self, *words: str | Path, fails: bool = False) -> str:
        """Run a docker command; its output. With `fails`, it must fail, and its messages are the output."""
        done = subprocess.run(
            [self.trees.programs / "docker", *words],
            env=dict(self.variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if fails else subprocess.PIPE,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) is fails, f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def inside(self, *words: str) -> str:
        """Run a program of the engine's tree in its namespaces; its process ids are those that docker names."""
        (first,) = psutil.Process(self.process.pid).children()
        return run(["nsenter", "--target", str(first.pid), "--mount", "--pid", "--net", "--", *words])

    def stop(self) -> None:
        """End the engine and everything that it started."""
        children = psutil.Process(self.process.pid).children()
        for child in children:
            child.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start(trees: Trees, state: Path) -> Engine:
    """Start an engine that stores its things in `state`."""
    shutil.rmtree(state / "run", ignore_errors=True)
    state.mkdir(parents=True, exist_ok=True)
    with (state / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(
            [ENTER, trees.engine, state, *DAEMON], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    deadline = time.monotonic() + _START_SECONDS
    while not (state / "run" / "docker.sock").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"no engine:\n{(state / 'dockerd.log').read_text()[-3000:]}")
        time.sleep(0.2)
    engine = Engine(process=process, state=state, trees=trees)
    # An import anew would be another image, and nothing that was built on the first one would be found again.
    if not engine.docker("image", "ls", "--quiet", STAND_IN):
        variables = [word for name in ("SSL_CERT_FILE", "PIP_CERT") for word in ("--change", f"ENV {name}=/{BUNDLE}")]
        engine.docker("import", *variables, "--change", 'CMD ["/bin/bash"]', trees.stand_in, STAND_IN)
    return engine


def make_trees() -> Trees:
    """The trees, from the cache or made anew: about a minute."""
    recipe = hashlib.sha256(f"{SUITE} {PACKAGES} {_mirror()}".encode())
    recipe.update(Path("/", BUNDLE).read_bytes())
    folder = cache() / "image-engine" / recipe.hexdigest()[:12]
    trees = Trees(engine=folder / "engine", stand_in=folder / "stand-in.tar", programs=folder / "programs")
    with exclusive_lock(folder.with_suffix(".lock"), doing="making the engine", wait=True):
        if not trees.programs.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            _make(trees)
    return trees


def _make(trees: Trees) -> None:
    missing = [package for program, package in HERE.items() if shutil.which(program) is None]
    if missing:
        run(["apt-get", "update", "--quiet=2"])
        run(["apt-get", "install", "--quiet=2", "--no-install-recommends", *missing])
    scratch = trees.stand_in.with_name("bare.tar")
    run(
        [
            *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--include=ca-certificates"),
            *(SUITE, scratch, f"deb {_mirror()} {SUITE} main"),
        ]
    )
    trees.engine.mkdir()
    run(["tar", "-C", trees.engine, "--exclude=./dev/*", "-xf", scratch])
    # What answers for the package index here may be signed by an authority that only this machine knows.
    run(["tar", "--delete", "--file", scratch, f"./{BUNDLE}"])
    with tarfile.open(scratch, "a") as archive:
        archive.add(Path("/", BUNDLE).resolve(), arcname=f"./{BUNDLE}")
    scratch.rename(trees.stand_in)
    shutil.copy2("/etc/resolv.conf", trees.engine / "etc" / "resolv.conf")
    install = "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends "
    run([ENTER, trees.engine, trees.engine.with_name("install"), "bash", "-c", install + " ".join(PACKAGES)])
    unfinished = trees.programs.with_name("programs.unfinished")
    plugins = unfinished / "config" / "cli-plugins"
    plugins.mkdir(parents=True)
    shutil.copy2(trees.engine / "usr/bin/docker", unfinished)
    for name in ("docker-buildx", "docker-compose"):
        shutil.copy2(trees.engine / "usr/libexec/docker/cli-plugins" / name, plugins)
    unfinished.rename(trees.programs)


def _mirror() -> str:
    """The archive of Debian that this machine uses."""
    for path in [*sorted(Path("/etc/apt").glob("sources.list*/*")), Path("/etc/apt/sources.list")]:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if found := re.search(r"^(?:URIs:\s*|deb\s+(?:\[[^]]*\]\s*)?)(\S+/debian/?)(?:\s|$)", text, re.MULTILINE):
            return found[1]
    raise AssertionError("this machine's apt names no archive of Debian")


def remove_stale(states: Path) -> None:
    """Remove what engines of processes that are gone have left on disk."""
    for folder in states.glob("state-*"):
        if not psutil.pid_exists(int(folder.name.removeprefix("state-"))):
            shutil.rmtree(folder, ignore_errors=True)
