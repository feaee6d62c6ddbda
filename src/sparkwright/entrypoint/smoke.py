"""After start, ask the server one completion; when the answer is not sane, say why, stop the server and end with 1.

Runs the server: `python -m sparkwright.entrypoint.smoke PROGRAM WORDS...`. It stays the container's first process: vLLM
ends with 0 when it is told to end, and nothing inside a container can end its first process any other way.
"""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from sparkwright.entrypoint import state
from sparkwright.entrypoint.server import ask, base_url
from sparkwright.errors import SparkwrightError, UnavailableError

_PROMPT: Final = "The capital of France is"
_TOKENS: Final = 8
_PAUSE: Final = 2.0
_GRACE: Final = 30.0
_HANDED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
FAILED: Final = 1
_COMPLETION_SECONDS: Final = 600.0  # the first request may compile kernels


def judge(answer: Mapping[str, Any]) -> None:
    """Refuse a completion without tokens or with a log-probability that is not finite and at most zero."""
    choice = answer["choices"][0]
    logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
    if not logprobs:
        raise UnavailableError("the completion carries no log-probabilities")
    for value in logprobs:
        # A little above zero is rounding.
        if value is None or not math.isfinite(value) or value > 1e-3:
            raise UnavailableError(f"a token has the log-probability {value}: the weights or their scales are wrong")


def ask_once(url: str, key: str) -> str:
    """One greedy completion of the served model, judged; its text."""
    model = json.loads(ask(f"{url}/v1/models", key=key))["data"][0]["id"]
    body = {"model": model, "prompt": _PROMPT, "max_tokens": _TOKENS, "temperature": 0, "logprobs": 1}
    answer = json.loads(ask(f"{url}/v1/completions", body, key=key, seconds=_COMPLETION_SECONDS))
    judge(answer)
    return str(answer["choices"][0].get("text", ""))


def wait_until_served(url: str, server: "subprocess.Popen[bytes]", seconds: float) -> None:
    """Wait for /health.

    Raises:
        UnavailableError: it stays away for the whole time.
        ProcessLookupError: the server has ended by itself.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            ask(f"{url}/health")
        except UnavailableError:
            if server.poll() is not None:
                raise ProcessLookupError from None
            if time.monotonic() > deadline:
                raise UnavailableError(f"{url}/health did not answer within {seconds:.0f} s (SMOKE_SECONDS)") from None
            time.sleep(_PAUSE)
        else:
            return


def stop(server: "subprocess.Popen[bytes]") -> None:
    """End the server: politely, then not."""
    server.terminate()
    try:
        server.wait(_GRACE)
    except subprocess.TimeoutExpired:
        server.kill()


def test(server: "subprocess.Popen[bytes]", known: Mapping[str, Any]) -> bool:
    """Wait, ask, judge; whether the server may go on. The result is left for the healthcheck too."""
    url = base_url(known)
    try:
        wait_until_served(url, server, float(known["smoke_seconds"]))
        text = ask_once(url, os.environ.get("VLLM_API_KEY", ""))
    except ProcessLookupError:
        return True  # it has ended: its own status says how
    except (SparkwrightError, KeyError, IndexError, ValueError) as error:
        if server.poll() is not None:
            return True  # it was told to end while it was asked
        state.write("smoke", {"passed": False, "why": str(error)})
        print(f"sparkwright: the smoke test failed, the server is stopped: {error}", file=sys.stderr, flush=True)
        return False
    state.write("smoke", {"passed": True, "why": ""})
    print(f"sparkwright: the smoke test passed: {_PROMPT!r} goes on with {text!r}", file=sys.stderr, flush=True)
    return True


def main() -> int:
    """Run the server and hand on signals; its status, or 1 when it failed the test."""
    server = subprocess.Popen(sys.argv[1:])
    told = False

    def hand_on(number: int, _: object) -> None:
        nonlocal told
        told = True
        server.send_signal(number)

    for number in _HANDED_ON:
        signal.signal(number, hand_on)
    passed = True

    def run_test() -> None:
        nonlocal passed
        known = state.read("state")
        passed = known is not None and test(server, known)
        if not passed and not told:
            stop(server)

    threading.Thread(target=run_test, daemon=True).start()
    status = server.wait()
    if not passed and not told:
        return FAILED
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    # Not sys.exit: the thread may still be asking, and an interpreter that is torn down under it crashes.
    os._exit(main())
