"""Real vLLM behind entrypoint.sh: a tiny model on the CPU, in BF16 and in NVFP4, and what a broken one comes to."""

import functools
import json
import math
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.environments import environment
from tests.serve.conftest import Spark, Started, post, status_of, until

from sparkwright.paths import CHECKOUT
from sparkwright.run import run

pytestmark = pytest.mark.serves

HERE = Path(__file__).parent
KEY = "k3y-9c41"
OPTIONS = ("--enforce-eager", "--dtype", "bfloat16", "--served-model-name", "tiny")
PROMPT = "The capital of France is Paris. A wright is one who builds; a spark is small and bright."
SETTINGS = {"MAX_NUM_SEQS": "4", "HOST": "127.0.0.1"}


@pytest.fixture(scope="module")
def nvfp4(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, calibrated and quantized by modelopt."""
    folder = tmp_path_factory.mktemp("nvfp4") / "model"
    run(
        [
            environment("quantize.txt", editable=CHECKOUT),
            HERE.parent / "quantize/make_checkpoint.py",
            tiny_model,
            folder,
        ]
    )
    return folder


@pytest.fixture(scope="module")
def broken(serving: Path, nvfp4: Path) -> Path:
    """The same without input scales."""
    folder = nvfp4.with_name("broken")
    run([serving / "bin/python", HERE / "remove_input_scales.py", nvfp4, folder])
    return folder


@pytest.fixture(scope="module")
def servers(spark: Spark, tiny_model: Path, nvfp4: Path, broken: Path, plugin: Path) -> dict[str, Started]:
    """Three containers, started at the same time."""
    emulated = {"PYTHONPATH": f"{plugin}:{spark.modules}", "SMOKE": "1", **SETTINGS}
    return {
        "bf16": spark.start("serve", *OPTIONS, MODEL=str(tiny_model), VLLM_API_KEY=KEY, **SETTINGS),
        "nvfp4": spark.start("serve", *OPTIONS, MODEL=str(nvfp4), **emulated),
        # What malloc hands out is zero, as fresh memory is: without it, what is never loaded differs from run to run.
        "broken": spark.start("serve", *OPTIONS, MODEL=str(broken), CHECK="0", MALLOC_PERTURB_="255", **emulated),
    }


@pytest.fixture(scope="module")
def bf16(servers: dict[str, Started]) -> Started:
    servers["bf16"].wait_healthy()
    return servers["bf16"]


@pytest.fixture
def book(tmp_path: Path) -> Iterator[str]:
    """The address of a text, on a web server of this test."""
    (tmp_path / "book.txt").write_text(f"{PROMPT}\n" * 200, encoding="utf-8")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/book.txt"
        server.shutdown()


def prompt_logprobs(url: str, key: str = "") -> list[float]:
    """The log-probability of each token of a prompt but the first."""
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    first, *others = post(f"{url}/v1/completions", body, key=key)["choices"][0]["prompt_logprobs"]
    assert first is None
    return [next(iter(token.values()))["logprob"] for token in others]


def test_a_broken_folder_is_refused_at_once(spark: Spark, broken: Path) -> None:
    refused = spark.start("serve", *OPTIONS, MODEL=str(broken), **SETTINGS)
    assert refused.process.wait(60) == 78
    assert f"MODEL={broken} must not be served: a layer with quantized activations lacks its input" in refused.output
    assert "vLLM" not in refused.output.replace("vLLM's", "").partition("What to do")[2]


def test_the_server_answers(bf16: Started) -> None:
    command = Path(f"/proc/{bf16.process.pid}/cmdline").read_text(encoding="utf-8").split("\0")
    assert command[2] == "serve", "the server is the process that was started"
    assert KEY not in command
    assert status_of(f"{bf16.url}/v1/models", key=KEY) == 200
    assert status_of(f"{bf16.url}/v1/models", key="other") == 401
    assert status_of(f"{bf16.url}/v1/models") == 401
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    assert post(f"{bf16.url}/v1/chat/completions", body, key=KEY)["choices"][0]["message"]["content"]
    assert KEY not in bf16.output
    health = bf16.health()
    assert health.returncode == 0, health.stdout


def test_the_default_context_follows_the_model(bf16: Started) -> None:
    assert "the context is 512 tokens, the model's own limit" in bf16.output


def test_llama_benchy_measures_it(bf16: Started, tiny_model: Path, book: str, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    words = ["--base-url", f"{bf16.url}/v1", "--api-key", KEY, "--model", "tiny", "--tokenizer", str(tiny_model)]
    # Many tokens, three times: on a busy machine all that is left of a short answer can arrive in one read, and then
    # there is no time between the first and the last token to divide by.
    words += ["--pp", "64", "--tg", "192", "--exact-tg", "--runs", "3", "--book-url", book, "--skip-coherence"]
    words += ["--format", "json", "--save-result", str(result)]
    done = subprocess.run(
        [str(Path(bf16.environment["SPARKWRIGHT_PYTHON"]).parent / "llama-benchy"), *words],
        env={**bf16.environment, "no_proxy": "*"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (measured,) = json.loads(result.read_text(encoding="utf-8"))["benchmarks"]
    assert measured["tg_throughput"]["mean"] > 0


def test_vllms_own_load_generator_finds_it(bf16: Started) -> None:
    words = ["--served-model-name", "tiny", "--dataset-name", "random", "--random-input-len", "32"]
    words += ["--random-output-len", "8", "--num-prompts", "2", "--temperature", "0"]
    done = subprocess.run(
        [str(CHECKOUT / "entrypoint.sh"), "bench", *words],
        env=dict(bf16.environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Successful requests:\s+2\s", done.stdout), done.stdout


def test_nvfp4_through_vllms_emulation_is_near_bf16(servers: dict[str, Started], bf16: Started) -> None:
    server = servers["nvfp4"]
    server.wait_healthy()
    assert "Using EmulationNvFp4LinearKernel for NVFP4 GEMM" in server.output
    until(lambda: "the smoke test passed" in server.output, 120, server.tail)
    exact, quantized = prompt_logprobs(bf16.url, KEY), prompt_logprobs(server.url)
    assert all(map(math.isfinite, quantized))
    differences = [abs(one - other) for one, other in zip(exact, quantized, strict=True)]
    mean = sum(differences) / len(differences)
    assert 0.001 < mean < 0.15, differences


def test_the_smoke_test_ends_a_server_without_input_scales(servers: dict[str, Started]) -> None:
    server = servers["broken"]
    assert server.process.wait(600) == 1, server.tail()
    assert "the smoke test failed, the server is stopped" in server.output
    health = server.health()
    assert (health.returncode, "the smoke test failed" in health.stdout) == (1, True), health.stdout
    until(lambda: server.members() == [], 10, lambda: f"{server.members()} are left")


@pytest.mark.parametrize("name", ["bf16", "nvfp4"])
def test_sigterm_ends_it(servers: dict[str, Started], name: str) -> None:
    server = servers[name]
    server.wait_healthy()
    assert server.stop() < 10
    assert server.process.returncode == 0
    until(lambda: server.members() == [], 10, lambda: f"{server.members()} are left")
