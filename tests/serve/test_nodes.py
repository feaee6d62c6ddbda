"""Two machines in one: network namespaces with a cable between them, real Ray and real vLLM."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.serve.conftest import HEAD, WORKER, Spark, Started, until

pytestmark = pytest.mark.serves

TOKEN = "b7f1c0de5eed"
OPTIONS = ("--enforce-eager", "--dtype", "bfloat16", "--served-model-name", "tiny", "--max-num-seqs", "4")


# Asks for more tokens than will ever come, and says what came of it.
_ASK = """
import json, sys, urllib.request
body = {"model": "tiny", "prompt": "The capital", "max_tokens": int(sys.argv[2]), "ignore_eos": True}
request = urllib.request.Request(sys.argv[1], json.dumps(body).encode(), {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request, timeout=300))["usage"]["completion_tokens"])
"""


def ask(head: Started, tokens: int) -> "subprocess.Popen[str]":
    """A client on the head's machine that asks for a completion."""
    command = [*head.prefix, sys.executable, "-c", _ASK, f"http://{HEAD}:{head.port}/v1/completions", str(tokens)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def answered(head: Started, tokens: int) -> str:
    """The number of tokens that came."""
    with ask(head, tokens) as client:
        said, _ = client.communicate(timeout=300)
    return said.strip()


def assert_the_loss_of_a_node_shows(head: Started, worker: Started) -> None:
    """Kill a node under a running request: the head turns unhealthy or ends, and says why."""
    with ask(head, 400) as client:
        until(lambda: "; 1 requests run" in head.health().stdout, 60, head.tail)
        before = len(head.output)
        worker.end()
        until(lambda: head.health().returncode == 1, 120, lambda: f"{head.health().stdout}\n{head.tail()}")
        assert client.wait(timeout=180) != 0, "the client was told"
    until(lambda: head.process.poll() is not None, 180, head.tail)
    assert "Error" in head.output[before:], head.tail()
    assert head.process.returncode == 0, "vLLM ends with 0 then, and docs/multi-node.md says so"


def test_ray_head_and_worker(
    spark: Spark, namespaces: tuple[list[str], list[str]], ray_folder: Callable[[], str], tiny_model: Path
) -> None:
    first, second = namespaces
    common = {"HEAD_IP": HEAD, "RAY_AUTH_TOKEN": TOKEN, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    worker = spark.start("ray-worker", "--num-cpus=1", prefix=second, RAY_TMPDIR=ray_folder(), **common)
    until(lambda: "waiting up to" in worker.output, 60, worker.tail)
    head = spark.start(
        "ray-head",
        *OPTIONS,
        prefix=first,
        RAY_TMPDIR=ray_folder(),
        MODEL=str(tiny_model),
        NNODES="2",
        HEALTH_STALL_SECONDS="20",
        **common,
    )
    until(lambda: "Ray runtime started" in worker.output, 180, lambda: f"{head.tail()}\n{worker.tail()}")
    assert worker.health().returncode == 0

    wrong = {**common, "RAY_AUTH_TOKEN": "another"}
    stranger = spark.start("ray-worker", "--num-cpus=1", prefix=second, RAY_TMPDIR=ray_folder(), **wrong)
    assert stranger.process.wait(timeout=120) != 0
    assert "uthentication" in stranger.output

    head.wait_healthy()
    assert f"2 of 2 nodes are there: {HEAD}, {WORKER}" in head.output
    assert "world_size=2" in head.output
    assert answered(head, 8) == "8"
    spare = spark.start("ray-worker", "--num-cpus=1", "--num-gpus=0", prefix=second, RAY_TMPDIR=ray_folder(), **common)
    until(lambda: "Ray runtime started" in spare.output, 180, spare.tail)
    assert TOKEN not in head.output + worker.output + spare.output
    assert_the_loss_of_a_node_shows(head, worker)
    head.end()
    assert spare.process.wait(timeout=120) != 0, "a worker that lost its head must end with an error"


def test_a_missing_head_is_told(spark: Spark, namespaces: tuple[list[str], list[str]]) -> None:
    lost = spark.start("ray-worker", prefix=namespaces[1], HEAD_IP=HEAD, RAY_AUTH_TOKEN=TOKEN, RAY_WAIT_SECONDS="3")
    assert lost.process.wait(timeout=60) == 69
    assert f"the head at {HEAD}:6379 did not answer within 3 s" in lost.output


def test_two_nodes_without_ray(spark: Spark, namespaces: tuple[list[str], list[str]], tiny_model: Path) -> None:
    first, second = namespaces
    common = {"MODEL": str(tiny_model), "HEAD_IP": HEAD, "NNODES": "2", "HEALTH_STALL_SECONDS": "20"}
    head = spark.start("serve", *OPTIONS, prefix=first, VLLM_CPU_OMP_THREADS_BIND="0", **common)
    worker = spark.start("serve", *OPTIONS, prefix=second, VLLM_CPU_OMP_THREADS_BIND="1", NODE_RANK="1", **common)
    head.wait_healthy()
    assert worker.health().returncode == 0
    assert "world_size=2" in head.output
    assert answered(head, 8) == "8"
    assert_the_loss_of_a_node_shows(head, worker)
