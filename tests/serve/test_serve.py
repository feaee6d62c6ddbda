"""Real vLLM behind entrypoint.sh: a tiny model on the CPU."""

import json
import urllib.request
from pathlib import Path

import pytest
from tests.serve.conftest import Spark, status_of, until

pytestmark = pytest.mark.long

SMALL = ("--max-model-len", "256", "--enforce-eager", "--dtype", "bfloat16", "--served-model-name", "tiny")


def chat(url: str, key: str) -> str:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def test_serve_answers_is_healthy_and_ends_cleanly(spark: Spark, tiny_model: Path) -> None:
    server = spark.start(
        "serve", *SMALL, MODEL=str(tiny_model), MAX_NUM_SEQS="4", VLLM_API_KEY="k3y-9c41", SMOKE="1", HOST="127.0.0.1"
    )
    server.wait_healthy()
    command = Path(f"/proc/{server.process.pid}/cmdline").read_text(encoding="utf-8").split("\0")
    assert command[2:4] == ["serve", str(tiny_model)], "the server is the process that was started"
    assert "k3y-9c41" not in command
    assert status_of(f"{server.url}/v1/models", key="k3y-9c41") == 200
    assert status_of(f"{server.url}/v1/models", key="other") == 401
    assert status_of(f"{server.url}/v1/models") == 401
    assert chat(server.url, "k3y-9c41")
    until(lambda: "the smoke test passed" in server.log.read_text(encoding="utf-8"), 120, server.tail)
    assert "k3y-9c41" not in server.log.read_text(encoding="utf-8")
    health = server.health()
    assert health.returncode == 0, health.stdout
    assert server.stop() < 10
    assert server.members() == []


def test_the_default_context_follows_the_model(spark: Spark, tiny_model: Path) -> None:
    words = [word for word in SMALL if word not in ("--max-model-len", "256")]
    server = spark.start("serve", *words, MODEL=str(tiny_model), MAX_NUM_SEQS="4", HOST="127.0.0.1")
    server.wait_healthy()
    assert "the context is 512 tokens, the model's own limit" in server.log.read_text(encoding="utf-8")
