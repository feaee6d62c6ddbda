"""The image's entrypoint: `entrypoint.sh [--dry-run] [MODE] [WORDS...]`."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from sparkwright.entrypoint import cluster, quantize, serve
from sparkwright.entrypoint.plan import Host, Plan
from sparkwright.entrypoint.variables import Values, read_secrets
from sparkwright.errors import SparkwrightError

_PLANNED: Final[Mapping[str, Callable[[Values, Sequence[str], Host, Mapping[str, str]], Plan]]] = {
    "serve": serve.plan,
    "ray-head": serve.plan_ray_head,
    "ray-worker": cluster.plan_worker,
    "quantize": quantize.plan,
}
_COMMANDS: Final = ("doctor", "about", "recipe", "checkpoint", "audit", "patch")


def plan(words: Sequence[str], environment: Mapping[str, str], host: Host) -> Plan:
    """Plan what the container's words mean in its environment.

    No word means `serve`; a first word that starts with `-` is an option of `serve`; a word that is no mode is a
    command, which runs as it is.
    """
    mode, *rest = words or ["serve"]
    if mode.startswith("-"):
        mode, rest = "serve", list(words)
    secrets = read_secrets(environment)
    if mode in _PLANNED:
        return _PLANNED[mode](Values(environment), rest, host, secrets)
    if mode == "bench":
        from sparkwright.entrypoint import bench

        return bench.plan(Values(environment), rest, host, secrets)
    if mode == "bash":
        return Plan(argv=("bash", *rest), secrets=secrets)
    if mode == "health":
        # Docker starts it beside the served process, without what that one was given by its plan.
        token = bool(environment.get("RAY_AUTH_TOKEN") or secrets.get("RAY_AUTH_TOKEN"))
        argv = (sys.executable, "-m", "sparkwright.entrypoint.health", *rest)
        return Plan(argv=argv, env=cluster.ray_environment(environment, token), secrets=secrets)
    if mode in _COMMANDS:
        return Plan(argv=(sys.executable, "-m", "sparkwright", mode, *rest), secrets=secrets)
    return Plan(argv=(mode, *rest), secrets=secrets)


def main() -> int:
    """Plan, then print the plan or become it; an error ends with its message and its exit code."""
    words = sys.argv[1:]
    dry = words[:1] == ["--dry-run"]
    try:
        planned = plan(words[1:] if dry else words, os.environ, Host())
        if dry:
            print(planned.as_json())
            return 0
        from sparkwright.entrypoint.launch import start

        start(planned)
    except SparkwrightError as error:
        print(f"sparkwright: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
