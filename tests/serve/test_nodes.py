"""Two machines in one: network namespaces with a cable between them, real Ray and real vLLM."""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.serve.conftest import Spark, Started, until

from sparkwright.errors import CommandFailedError
from sparkwright.run import run

pytestmark = pytest.mark.long

HEAD, WORKER = "10.77.0.1", "10.77.0.2"
TOKEN = "b7f1c0de5eed"
TINY = ("--max-model-len", "256", "--enforce-eager", "--dtype", "bfloat16", "--served-model-name", "tiny")


@pytest.fixture
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


@pytest.fixture
def ray_folder() -> Iterator[Callable[[], str]]:
    """Short folders for Ray's sessions: a socket's path may have 107 characters."""
    made: list[str] = []

    def make() -> str:
        made.append(tempfile.mkdtemp(prefix="r", dir="/tmp"))
        return made[-1]

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


def log(started: Started) -> str:
    return started.log.read_text(encoding="utf-8", errors="replace")


def test_ray_head_and_worker(
    spark: Spark, namespaces: tuple[list[str], list[str]], ray_folder: Callable[[], str]
) -> None:
    first, second = namespaces
    common: dict[str, str] = {"HEAD_IP": HEAD, "RAY_AUTH_TOKEN": TOKEN}
    worker = spark.start("ray-worker", "--num-cpus=1", prefix=second, RAY_TMPDIR=ray_folder(), **common)
    until(lambda: "waiting up to" in log(worker), 30, worker.tail)
    head = spark.start("ray-head", "--num-cpus=1", prefix=first, RAY_TMPDIR=ray_folder(), **common)
    until(lambda: "Ray runtime started" in log(worker), 120, lambda: f"{head.tail()}\n{worker.tail()}")
    for machine in (head, worker):
        health = machine.health()
        assert health.returncode == 0, health.stdout
    assert TOKEN not in log(head) + log(worker)

    wrong = {**common, "RAY_AUTH_TOKEN": "another"}
    stranger = spark.start("ray-worker", "--num-cpus=1", prefix=second, RAY_TMPDIR=ray_folder(), **wrong)
    assert stranger.process.wait(timeout=90) != 0
    assert "uthentication" in log(stranger)

    for member in head.members():
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    assert worker.process.wait(timeout=120) != 0, "a worker that lost its head must end with an error"


def test_a_missing_head_is_told(spark: Spark, namespaces: tuple[list[str], list[str]]) -> None:
    lost = spark.start("ray-worker", prefix=namespaces[1], HEAD_IP=HEAD, RAY_AUTH_TOKEN=TOKEN, RAY_WAIT_SECONDS="3")
    assert lost.process.wait(timeout=60) == 69
    assert f"the head at {HEAD}:6379 did not answer within 3 s" in log(lost)


def test_two_nodes_without_ray(spark: Spark, namespaces: tuple[list[str], list[str]], tiny_model: Path) -> None:
    first, second = namespaces
    common = {"MODEL": str(tiny_model), "HEAD_IP": HEAD, "NNODES": "2", "MAX_NUM_SEQS": "4", "SMOKE": "1"}
    head = spark.start("serve", *TINY, prefix=first, VLLM_CPU_OMP_THREADS_BIND="0", **common)
    spark.start("serve", *TINY, prefix=second, VLLM_CPU_OMP_THREADS_BIND="1", NODE_RANK="1", **common)
    head.wait_healthy(420)
    until(lambda: "the smoke test passed" in log(head), 180, head.tail)
    assert "world_size=2" in log(head)
