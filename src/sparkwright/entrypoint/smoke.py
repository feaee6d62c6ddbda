"""After start, ask the server one completion; when the answer is not sane, say why and stop the server.

Runs as a child of the server: `python -m sparkwright.entrypoint.smoke SERVER_PID`.
"""

import json
import math
import os
import signal
import sys
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


def _alive(server: int) -> bool:
    try:
        os.kill(server, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_served(url: str, server: int, seconds: float) -> None:
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
            if not _alive(server) or os.getppid() != server:
                raise ProcessLookupError from None
            if time.monotonic() > deadline:
                raise UnavailableError(f"{url}/health did not answer within {seconds:.0f} s (SMOKE_SECONDS)") from None
            time.sleep(_PAUSE)
        else:
            return


def stop(server: int) -> None:
    """End the server: politely, then not."""
    os.kill(server, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE
    while _alive(server) and os.getppid() == server:
        if time.monotonic() > deadline:
            os.kill(server, signal.SIGKILL)
            return
        time.sleep(_PAUSE)


def main() -> int:
    """Wait, ask, judge; the result is left for the healthcheck too."""
    server = int(sys.argv[1])
    known = state.read("state")
    if known is None:
        print("sparkwright: the smoke test does not know what was started", file=sys.stderr)
        return 1
    url = base_url(known)
    try:
        wait_until_served(url, server, float(known["smoke_seconds"]))
        text = ask_once(url, os.environ.get("VLLM_API_KEY", ""))
    except ProcessLookupError:
        return 1
    except (SparkwrightError, KeyError, IndexError, ValueError) as error:
        state.write("smoke", {"passed": False, "why": str(error)})
        print(f"sparkwright: the smoke test failed, the server is stopped: {error}", file=sys.stderr, flush=True)
        stop(server)
        return 1
    state.write("smoke", {"passed": True, "why": ""})
    print(f"sparkwright: the smoke test passed: {_PROMPT!r} goes on with {text!r}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
