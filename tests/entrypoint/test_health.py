"""The healthcheck's deadlock rule and the smoke test, against a small server that replays answers."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sparkwright.entrypoint import health, smoke, state
from sparkwright.errors import UnavailableError


def metrics(running: float, generated: float, prompt: float) -> str:
    """Two engines, as vLLM writes them."""
    lines = ["# HELP vllm:num_requests_running Number of requests."]
    for engine in (0, 1):
        label = f'{{engine="{engine}",model_name="m"}}'
        lines += [
            f"vllm:num_requests_running{label} {running / 2}",
            f"vllm:generation_tokens_total{label} {generated / 2:e}",
            f"vllm:prompt_tokens_total{label} {prompt / 2}",
            f'vllm:time_to_first_token_seconds_bucket{{le="0.1",engine="{engine}"}} 3.0',
        ]
    return "\n".join(lines)


class Server:
    """Answers by path; the test changes the answers."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, str]] = {"/health": (200, ""), "/metrics": (200, metrics(0, 0, 0))}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self._answer()

            def _answer(self) -> None:
                status, text = outer.answers.get(self.path, (404, "not here"))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("SPARKWRIGHT_STATE", str(tmp_path / "state"))
    running = Server()
    state.write(
        "state", {"mode": "serve", "host": "0.0.0.0", "port": running.port, "stall_seconds": 600, "smoke_seconds": 5}
    )
    yield running
    running.http.shutdown()
    running.http.server_close()


def check(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = health.main()
    return status, capsys.readouterr().out.strip()


def test_nothing_is_served_is_healthy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARKWRIGHT_STATE", str(tmp_path))
    assert health.main() == 0


def test_an_idle_server_is_healthy_for_ever(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        assert check(capsys) == (0, f"http://127.0.0.1:{server.port} serves; 0 requests run")


@pytest.mark.parametrize("status", [500, 503])
def test_a_failing_health_is_unhealthy(server: Server, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["/health"] = (status, "no")
    code, said = check(capsys)
    assert code == 1
    assert f"answered {status}" in said


def test_no_server_is_unhealthy(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.http.shutdown()
    server.http.server_close()
    assert check(capsys)[0] == 1


def test_a_deadlock_behind_a_green_health_is_unhealthy(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    server.answers["/metrics"] = (200, metrics(3, 500, 800))
    assert check(capsys)[0] == 0
    now += 600
    assert check(capsys)[0] == 0
    now += 1
    code, said = check(capsys)
    assert code == 1
    assert "3 requests run, but no token was read or written for 601 s" in said


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (metrics(3, 501, 800), "a token was written"),
        (metrics(3, 500, 9000), "a prefill ended"),
        (metrics(0, 500, 800), "nothing runs any more"),
    ],
)
def test_progress_or_rest_starts_the_clock_again(second: str, why: str) -> None:
    _, first = health.stalled(metrics(3, 500, 800), 0.0, None)
    seconds, record = health.stalled(second, 700.0, first)
    assert (seconds, record["since"]) == (0.0, 700.0), why
    later, _ = health.stalled(second, 1500.0, record)
    assert later == (0.0 if "nothing" in why else 800.0)


def test_requests_that_begin_after_a_rest_have_their_full_time() -> None:
    _, idle = health.stalled(metrics(0, 500, 800), 0.0, None)
    seconds, _ = health.stalled(metrics(1, 500, 800), 5000.0, idle)
    assert seconds == 0.0


@pytest.mark.parametrize(("mode", "status"), [("headless", 0), ("ray-head", 1)])
def test_other_modes(server: Server, mode: str, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stub = tmp_path / "ray"
    stub.write_text('#!/bin/sh\necho "$@" >&2\nexit 1\n', encoding="utf-8")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    state.write("state", {"mode": mode, "address": "127.0.0.1:6379"})
    assert health.main() == status
    stub.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    assert health.main() == 0
    assert server.port


def completion(*values: float | None) -> str:
    return json.dumps({"choices": [{"text": " Paris.", "logprobs": {"token_logprobs": list(values)}}]})


@pytest.mark.parametrize("values", [(-0.1, math.nan), (-math.inf,), (0.5,), (None,), ()])
def test_an_insane_answer_is_refused(values: tuple[float | None, ...]) -> None:
    with pytest.raises(UnavailableError):
        smoke.judge(json.loads(completion(*values)))


def _serve_answers(server: Server, status: int, text: str) -> None:
    server.answers["/v1/models"] = (200, json.dumps({"data": [{"id": "m"}]}))
    server.answers["/v1/completions"] = (status, text)


# What stands for the server: it ends with 0 when it is told to, as vLLM does.
_SERVER = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
    "print('started', flush=True)\n"
    "time.sleep(60)\n"
)


@contextlib.contextmanager
def smoked(program: str = _SERVER) -> Iterator["subprocess.Popen[str]"]:
    """The smoke test running a program that stands for the server."""
    command = [sys.executable, "-m", "sparkwright.entrypoint.smoke", sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "started\n"
            yield process
        finally:
            process.kill()


def until_smoked() -> dict[str, object]:
    deadline = time.monotonic() + 30
    while (result := state.read("smoke")) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return result


def test_a_sane_answer_passes_and_leaves_the_server_alone(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    _serve_answers(server, 200, completion(-0.5, -0.01))
    with smoked() as process:
        assert until_smoked() == {"passed": True, "why": ""}
        assert check(capsys)[0] == 0
        assert process.poll() is None
        process.terminate()
        assert process.wait(10) == 0, "the server was told, and ended as it does"


@pytest.mark.parametrize(
    ("status", "text", "why"),
    [
        (200, completion(-0.5, math.nan), "log-probability nan"),
        (400, '{"message": "Out of range float values are not JSON compliant"}', "Out of range float values"),
        (200, "{}", "choices"),
    ],
)
def test_garbage_stops_the_server_and_ends_with_an_error(
    server: Server, status: int, text: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _serve_answers(server, status, text)
    with smoked() as process:
        assert process.wait(30) == 1
    result = until_smoked()
    assert not result["passed"]
    assert why in str(result["why"])
    code, said = check(capsys)
    assert code == 1
    assert "the smoke test failed" in said


def test_a_server_that_will_not_end_is_killed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    _serve_answers(server, 200, "{}")
    deaf = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
    )
    monkeypatch.setattr(smoke, "_GRACE", 0.2)
    with deaf:
        assert deaf.stdout
        deaf.stdout.readline()
        smoke.stop(deaf)
        assert deaf.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(("end", "status"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", 137)])
def test_the_status_of_a_server_that_ends_by_itself(server: Server, end: str, status: int) -> None:
    server.answers["/health"] = (503, "")
    with smoked(f"import os, sys\nprint('started', flush=True)\n{end}") as process:
        assert process.wait(10) == status
    assert state.read("smoke") is None
