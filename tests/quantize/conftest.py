"""Environments of real tools, tiny models made once, and commands that start from a warm interpreter."""

import contextlib
import json
import os
import random
import re
import signal
import string
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.environments import environment

from sparkwright.checkpoint.checkpoint import read_checkpoint
from sparkwright.checkpoint.dequantize import chunks
from sparkwright.files import sha256_file
from sparkwright.paths import CHECKOUT
from sparkwright.run import run

HERE = Path(__file__).parent
SAMPLES, LENGTH = 8, 64
MODELOPT = ("transformers.models.auto.modeling_auto", "modelopt.torch.quantization", "modelopt.torch.export")


@dataclass(kw_only=True)
class Job:
    """A command that was started, as a process of its own session."""

    argv: list[str]
    log: Path
    pid: int = 0
    status: int | None = None
    changed: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def output(self) -> str:
        """All that it wrote so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def wait(self, seconds: float = 300) -> int:
        """Its exit status; negative for a signal."""
        assert self.ended.wait(seconds), f"{self.argv} does not end\n{self.output[-4000:]}"
        assert self.status is not None
        return self.status

    def kill(self) -> None:
        """End it as the kernel's out-of-memory killer would, and whatever it started."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class Warm:
    """Starts commands in copies of an interpreter that has imported the slow packages already (see warm.py)."""

    def __init__(self, python: Path, folder: Path, *modules: str) -> None:
        self.python, self.folder = python, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._jobs: dict[int, Job] = {}
        self._waiting: list[Job] = []
        self._count = 0
        self._log = (folder / "warm.log").open("wb")
        self.environment = {
            "PATH": f"{python.parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
        }
        self._process = subprocess.Popen(
            [python, HERE / "warm.py", *modules],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=folder,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        assert self._process.stdout
        if self._process.stdout.readline() != b"ready\n":
            self.close()
            raise AssertionError((folder / "warm.log").read_text())
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            word, pid, *rest = line.decode().split()
            if word == "started":
                job = self._waiting.pop(0)
                job.pid = int(pid)
                self._jobs[job.pid] = job
                job.changed.set()
            else:
                job = self._jobs.pop(int(pid))
                job.status = int(rest[0])
                job.ended.set()

    def start(
        self,
        *argv: str | Path,
        die: tuple[int, Path] | None = None,
        of: signal.Signals = signal.SIGKILL,
        **env: str,
    ) -> Job:
        """Start a script of this folder, or `sparkwright`.

        `die` gives it the signal `of` at its n-th change of names in a folder.
        """
        words = [str(word) for word in argv]
        if words[0].endswith(".py"):
            words[0] = str(HERE / words[0])
        self._count += 1
        job = Job(argv=words, log=self.folder / f"{self._count}.log")
        self._waiting.append(job)
        assert self._process.stdin
        death = None if die is None else [die[0], str(die[1]), of]
        order = {"argv": words, "log": str(job.log), "env": env, "die": death}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        assert job.changed.wait(60)
        return job

    def run(self, *argv: str | Path) -> str:
        """Run a command to its end; what it wrote."""
        job = self.start(*argv)
        status = job.wait()
        assert status == 0, f"{job.argv} ended with {status}\n{job.output[-6000:]}"
        return job.output

    def tool(self, *words: str | Path, prefix: Sequence[str] = (), env: Mapping[str, str] | None = None) -> str:
        """Run the Python of this environment anew, behind the words of `prefix`; what it wrote."""
        return run([*prefix, self.python, *words], env=self.environment | dict(env or {}))

    def close(self) -> None:
        """End the interpreter; its children must have ended before."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(60)
        if self._listener.is_alive():
            self._listener.join()
        self._process.stdout.close()
        self._log.close()


def _warm(python: Path, factory: pytest.TempPathFactory, name: str, *modules: str) -> Iterator[Warm]:
    started = Warm(python, factory.mktemp(name), *modules)
    yield started
    started.close()


@pytest.fixture(scope="package")
def quantizing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """The environment of `sparkwright quantize`, with this checkout in it."""
    python = environment("quantize.txt", editable=CHECKOUT)
    yield from _warm(python, tmp_path_factory, "quantizing", *MODELOPT, "ray", "sparkwright.cli")


@pytest.fixture(scope="package")
def modelopt_043(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """modelopt 0.43 with transformers 4."""
    python = environment("checkpoint-modelopt-0.43.txt")
    yield from _warm(python, tmp_path_factory, "modelopt-0.43", *MODELOPT)


@pytest.fixture(scope="package")
def llm_compressor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """llm-compressor 0.14."""
    python = environment("checkpoint-llmcompressor-0.14.txt")
    yield from _warm(python, tmp_path_factory, "llm-compressor", "llmcompressor")


class Models:
    """Tiny models by architecture and options, each made once."""

    def __init__(self, warm: Warm, folder: Path) -> None:
        self._warm, self._folder = warm, folder

    def __call__(self, architecture: str, *options: str) -> Path:
        """The folder of a model; tests only read it."""
        name = re.sub(r"[^a-z0-9_]+", "-", " ".join([architecture, *options]).lower())
        folder = self._folder / name
        if not folder.exists():
            self._warm.run("make_model.py", folder, "--architecture", architecture, *options)
        return folder


@pytest.fixture(scope="package")
def models(quantizing: Warm, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Makes tiny models."""
    return Models(quantizing, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="package")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibration data: random words, enough for SAMPLES of LENGTH tokens."""
    chance = random.Random(7)
    file = tmp_path_factory.mktemp("data") / "texts.jsonl"
    words = ["".join(chance.choices(string.ascii_letters + string.digits, k=chance.randint(1, 9))) for _ in range(400)]
    lines = [json.dumps({"text": " ".join(chance.choices(words, k=30))}) for _ in range(SAMPLES)]
    file.write_text("\n".join(lines) + "\n")
    return file


def tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of a checkpoint: type, shape and bytes."""
    return {
        name: (tensor.dtype, tensor.shape, b"".join(piece.tobytes() for piece in chunks(tensor)))
        for name, tensor in read_checkpoint(folder).tensors.items()
    }


def settings(folder: Path, name: str) -> dict[str, object]:
    """A JSON file of a checkpoint."""
    value: dict[str, object] = json.loads((folder / name).read_text(encoding="utf-8"))
    return value


def contents(folder: Path) -> dict[str, str]:
    """The sha256 of each file of a result by its name."""
    return {str(one.relative_to(folder)): sha256_file(one) for one in sorted(folder.rglob("*")) if one.is_file()}


Quantize = Callable[..., str]


@pytest.fixture(scope="package")
def quantize(quantizing: Warm, data: Path) -> Quantize:
    """Run `sparkwright quantize SOURCE OUTPUT` with the calibration data and further options."""

    def perform(source: Path, output: Path, *options: str) -> str:
        return quantizing.run("sparkwright", *command(source, output, data), *options)

    return perform


def command(source: Path, output: Path, data: Path) -> list[str]:
    """The words of `sparkwright quantize` for a tiny model."""
    counts = ["--samples", str(SAMPLES), "--length", str(LENGTH)]
    return ["quantize", str(source), str(output), "--data", str(data), *counts, "--device", "cpu"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory of a megabyte: too small for a result."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False)
    if mounted.returncode and not os.environ.get("CI"):
        pytest.skip("mounting a small file system needs root")
    assert mounted.returncode == 0
    yield folder
    # Ray's processes end a little later than the command: what they still hold goes with them.
    subprocess.run(["umount", "--lazy", folder], check=True)
