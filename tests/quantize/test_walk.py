"""docs/quantize.md, walked through: its commands as they stand there, with entrypoint.sh in the place of Docker."""

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.entrypoint.test_documents import Pasted, commands, pasted
from tests.environments import environment
from tests.quantize.conftest import LENGTH, SAMPLES, command, contents
from tests.serve.conftest import (  # noqa: F401 - fixtures
    HEAD,
    WORKER,
    Spark,
    Started,
    namespaces,
    plugin,
    post,
    ray_folder,
    serving,
    spark,
    until,
)

from sparkwright.errors import UnavailableError
from sparkwright.paths import CHECKOUT, DOCS

if TYPE_CHECKING:
    from tests.quantize.conftest import Models, Warm

pytestmark = [pytest.mark.quantizes, pytest.mark.serves]

PAGE = (DOCS / "quantize.md").read_text(encoding="utf-8")
TINY = ("--samples", str(SAMPLES), "--length", str(LENGTH), "--device", "cpu")
"""What the tests add: the model is small, and no GPU is there."""
NAME = "Qwen3-8B"
LAYERS = 16
STOPPED_AT = 8
"""The change of names in the folder of the result at which `docker stop` comes: layers are there, and not all."""


def section(title: str) -> list[list[str]]:
    """The commands of a section of the page."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## )", PAGE, re.DOTALL | re.MULTILINE)
    return commands(text)


@dataclass(frozen=True)
class Machine:
    """A Spark with a folder that is its `$PWD`, and how its paths in containers are called here."""

    spark: Spark
    folder: Path
    inside: Path
    prefix: tuple[str, ...] = ()

    def start(self, run: Pasted, *further: str, **env: str) -> Started:
        """Start what a `docker run` would."""
        words = [self.here(run, word) for word in run.words]
        env = {name: self.here(run, value) for name, value in run.env.items()} | env
        return self.spark.start(*words, *further, prefix=self.prefix, **env)

    def here(self, run: Pasted, word: str) -> str:
        """A path in the container as a path of this test."""
        for inside, outside in run.volumes.items():
            if word == inside or word.startswith(f"{inside}/"):
                assert outside in (f"$PWD/{outside.removeprefix('$PWD/')}", "spark-cache")
                return f"{self.inside / outside.removeprefix('$PWD/')}{word.removeprefix(inside)}"
        assert not word.startswith("/"), f"{word} is in no volume"
        return word


def done(started: Started) -> str:
    """What a container said that must end well."""
    assert started.process.wait(timeout=600) == 0, started.tail()
    return started.output


@pytest.fixture(scope="module")
def quantizer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spark]:
    """Starts containers with what the image has for quantizing."""
    machine = Spark(environment("quantize.txt", editable=CHECKOUT).parents[1], tmp_path_factory.mktemp("quantizer"))
    yield machine
    for started in machine.started:
        started.end()


def fill(folder: Path, model: Path, data: Path | None) -> Path:
    """The folder that the page tells to fill."""
    shutil.copytree(model, folder / "models" / NAME)
    (folder / "scratch").mkdir()
    (folder / "token").write_text("5ca1ab1e", encoding="utf-8")
    if data is not None:
        shutil.copy(data, folder / "models/texts.jsonl")
    return folder


def test_one_node(
    quantizer: Spark,
    models: "Models",
    data: Path,
    spark: Spark,  # noqa: F811 - the fixture
    plugin: Path,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    folder = fill(tmp_path, models("llama"), data)
    machine, server = Machine(quantizer, folder, folder), Machine(spark, folder, folder)
    *runs, ask = section("On one node")
    download, plan, quantize, verify, serve = map(pasted, runs)

    assert download.words == ["hf", "download", f"Qwen/{NAME}", "--local-dir", f"/models/{NAME}"]
    assert "--local-dir" in done(machine.start(Pasted({}, ["hf", "download", "--help"], {})))
    assert "What the run needs" in done(machine.start(plan, *TINY[:4]))
    said = done(machine.start(quantize, *TINY))
    assert "findings of `checkpoint verify`" in said
    assert "arning" not in said
    assert "modelopt NVFP4, nothing found" in done(machine.start(verify))

    emulation = {"PYTHONPATH": f"{plugin}:{spark.modules}", "MAX_NUM_SEQS": "4", "HOST": "127.0.0.1"}
    started = server.start(serve, "--enforce-eager", "--dtype", "bfloat16", **emulation)
    started.wait_healthy()
    assert "Using EmulationNvFp4LinearKernel for NVFP4 GEMM" in started.output
    url = ask[1].replace("http://127.0.0.1:8888", started.url)
    body = json.loads(ask[ask.index("-d") + 1])
    assert post(url, body)["usage"]["completion_tokens"] == body["max_tokens"]
    started.end()


def test_docker_stop_leaves_what_resume_goes_on_with(
    quantizing: "Warm", models: "Models", data: Path, tmp_path: Path
) -> None:
    words = command(models("llama"), tmp_path / "made", data)
    undisturbed = command(models("llama"), tmp_path / "undisturbed", data)
    job = quantizing.start("sparkwright", *words, die=(STOPPED_AT, tmp_path / "made"), of=signal.SIGTERM)
    assert job.wait() == 128 + signal.SIGTERM, job.output
    assert any((tmp_path / "made").glob("model-*"))
    assert "the same command with --resume goes on" in job.output
    assert "Traceback" not in job.output
    assert not (tmp_path / "made/config.json").exists()
    quantizing.run("sparkwright", *words, "--resume")
    quantizing.run("sparkwright", *undisturbed)
    assert contents(tmp_path / "made") == contents(tmp_path / "undisturbed")


@pytest.mark.long
def test_two_nodes_of_which_one_is_lost(
    quantizer: Spark,
    models: "Models",
    data: Path,
    namespaces: tuple[list[str], list[str]],  # noqa: F811 - the fixture
    ray_folder: Callable[[], str],  # noqa: F811 - the fixture
    quantizing: "Warm",
    tmp_path: Path,
) -> None:
    """Two machines with folders of their own, which each calls by the same path; both are started anew."""
    model = models("llama", "--copies", "--layers", str(LAYERS))
    mount = tmp_path / "mount"
    mount.mkdir()
    machines = []
    for name, prefix in zip(("first", "second"), namespaces, strict=True):
        folder = fill(tmp_path / name, model, data if name == "first" else None)
        bound = ("unshare", "--mount", "sh", "-c", f'mount --bind {folder} {mount} && exec "$@"', "sh")
        machines.append(Machine(quantizer, folder, mount, (*prefix, *bound)))
    first, second = machines
    output = first.folder / f"models/{NAME}-NVFP4"
    join, quantize = map(pasted, section("On two nodes or more"))

    def start(*further: str) -> tuple[Started, Started]:
        worker = second.start(join, "--num-cpus=1", HEAD_IP=HEAD, RAY_TMPDIR=ray_folder())
        return worker, first.start(quantize, *TINY, *further, HEAD_IP=HEAD, RAY_TMPDIR=ray_folder())

    lost, left = start("--save-every", "2")
    position = output / ".sparkwright/quantize/position.json"
    until(lambda: position.exists() or left.process.poll() is not None, 300, lambda: left.tail() + lost.tail())
    lost.end()
    assert left.process.wait(timeout=300) == UnavailableError.exit_code, left.tail()
    assert "run the same command with --resume" in left.output
    left.end()
    assert not (output / "config.json").exists()
    # Nor is anything needed that was on the lost one.
    shutil.rmtree(second.folder / "scratch")
    (second.folder / "scratch").mkdir()

    worker, head = start("--resume")
    said = done(head)
    assert f"2 of 2 nodes are there: {HEAD}, {WORKER}" in said
    assert re.search(rf"going on at layer \d+ of {LAYERS}", said)
    assert "5ca1ab1e" not in said + worker.output
    report = json.loads(output.with_name(f"{output.name}.report.json").read_text(encoding="utf-8"))
    assert [one["layers"] for one in report["nodes"]] == [[*range(0, LAYERS, 2)], [*range(1, LAYERS, 2)]]
    quantizing.run("sparkwright", *command(model, tmp_path / "alone", data))
    assert contents(output) == contents(tmp_path / "alone")
    assert sorted(one.name for one in (second.folder / "models").iterdir()) == [NAME]
    assert [*(first.folder / "scratch").iterdir(), *(second.folder / "scratch").iterdir()] == []
    # The container of the first node has ended: so does the worker.
    head.end()
    assert worker.process.wait(timeout=120) != 0
