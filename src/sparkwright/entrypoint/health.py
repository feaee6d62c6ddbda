"""The image's healthcheck, for every mode: `entrypoint.sh health` ends with 0 when all is well, else with 1 and why."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from sparkwright.entrypoint import state
from sparkwright.entrypoint.server import ask, base_url
from sparkwright.errors import SparkwrightError, UnavailableError

_SAMPLE = re.compile(r"^(vllm:\w+)(?:\{[^}]*\})?\s+(\S+)", re.MULTILINE)
_RAY_SECONDS: Final = 25


def totals(metrics: str) -> dict[str, float]:
    """Each metric of vLLM's /metrics, summed over engines."""
    found: dict[str, float] = {}
    for name, value in _SAMPLE.findall(metrics):
        found[name] = found.get(name, 0.0) + float(value)
    return found


def stalled(metrics: str, now: float, before: Mapping[str, Any] | None) -> tuple[float, dict[str, float]]:
    """For how long requests have run without a token, and the record for the next call.

    The clock starts when requests run and ends whenever one of the two token counters moves: a long prefill moves the
    prompt counter only at its end, an answer moves the other.
    """
    counted = totals(metrics)
    record = {
        "since": now,
        "generated": counted.get("vllm:generation_tokens_total", 0.0),
        "prompt": counted.get("vllm:prompt_tokens_total", 0.0),
        "running": counted.get("vllm:num_requests_running", 0.0),
    }
    still = (
        before is not None
        and record["running"] > 0
        and before.get("running", 0) > 0
        and all(before.get(name) == record[name] for name in ("generated", "prompt"))
    )
    if still and before is not None:
        record["since"] = float(before["since"])
    return now - record["since"], record


def check_serve(known: Mapping[str, Any]) -> str:
    """Ask /health, then look for a deadlock behind it."""
    url = base_url(known)
    if (smoke := state.read("smoke")) and not smoke["passed"]:
        raise UnavailableError(f"the smoke test failed: {smoke['why']}")
    ask(f"{url}/health")
    seconds, record = stalled(ask(f"{url}/metrics"), time.time(), state.read("progress"))
    state.write("progress", record)
    if seconds > known["stall_seconds"]:
        raise UnavailableError(
            f"{record['running']:.0f} requests run, but no token was read or written for {seconds:.0f} s "
            f"(HEALTH_STALL_SECONDS={known['stall_seconds']}): the engine hangs"
        )
    return f"{url} serves; {record['running']:.0f} requests run"


def check_ray(known: Mapping[str, Any]) -> str:
    """Ask Ray's head."""
    command = ["ray", "health-check", "--address", str(known["address"])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_RAY_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"Ray at {known['address']} cannot be asked: {error}") from error
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-3:])
        raise UnavailableError(f"Ray at {known['address']} is not healthy:\n{tail}")
    return f"Ray at {known['address']} answers"


def check_ray_serve(known: Mapping[str, Any]) -> str:
    """Ask Ray, then the server on top of it."""
    return f"{check_ray(known)}; {check_serve(known)}"


def check_headless(_: Mapping[str, Any]) -> str:
    """A headless node has no API: its process is alive, or this container would not be."""
    return "headless: the head's healthcheck speaks for the whole"


_CHECKS: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "serve": check_serve,
    "headless": check_headless,
    "ray-head": check_ray,
    "ray-worker": check_ray,
    "ray-serve": check_ray_serve,
}


def main() -> int:
    """Check what this container was started as."""
    known = state.read("state")
    if known is None:
        print("nothing is served here")
        return 0
    try:
        print(_CHECKS[known["mode"]](known))
    except SparkwrightError as error:
        print(f"unhealthy: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
