"""Carry out a plan: check what only a real start can check, wait for what must be there, and become the command."""

import json
import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from sparkwright.entrypoint import state
from sparkwright.entrypoint.cluster import describe_nodes
from sparkwright.entrypoint.plan import Plan, Wait
from sparkwright.errors import ConfigurationError, UnavailableError
from sparkwright.run import run

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 15.0


def say(text: str) -> None:
    """Tell something on stderr; stdout belongs to the command."""
    print(f"sparkwright: {text}", file=sys.stderr, flush=True)


def find(program: str) -> str:
    """The full path of a program.

    Raises:
        UnavailableError: it is not on PATH.
    """
    path = shutil.which(program)
    if path is None:
        raise UnavailableError(
            f"{program} is not on PATH",
            cause="this is not the image, or PATH was replaced",
            remedy="run it in the image; leave PATH as the image sets it",
        )
    return path


def check_port(host: str, port: int) -> None:
    """Refuse a port that another program holds; vLLM would find out only after loading the model."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigurationError(
            f"HOST={host} is not an address of this machine: {error.strerror}",
            remedy="HOST=0.0.0.0 listens on every interface",
        ) from error
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise ConfigurationError(
                f"PORT={port} cannot be used on {host}: {error.strerror}",
                cause="another server, often an earlier container with --network host, still holds it",
                remedy="stop it, or choose another: -e PORT=8889",
            ) from error


def _writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or in the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)


def check_home(environment: dict[str, str]) -> dict[str, str]:
    """What must be set so that compiled kernels and downloads have a place; refuse when there is none.

    Raises:
        ConfigurationError: neither HOME nor XDG_CACHE_HOME can be written.
    """
    home = Path(environment.get("HOME") or "/")
    cache = environment.get("XDG_CACHE_HOME")
    if not _writable(Path(cache) if cache else home / ".cache"):
        named = f"XDG_CACHE_HOME={cache}" if cache else f"HOME={home}"
        raise ConfigurationError(
            f"{named} cannot be written by user {os.getuid()}",
            cause="the container runs with --user or --read-only, and no volume is mounted for the caches",
            remedy="mount one and name it: -v spark-cache:/cache -e XDG_CACHE_HOME=/cache; compiled kernels and "
            "models, unless HF_HOME says otherwise, are kept there",
        )
    added: dict[str, str] = {}
    if cache and not _writable(home):
        # These two look at HOME only.
        added = {"FLASHINFER_WORKSPACE_BASE": cache, "TRITON_CACHE_DIR": f"{cache}/triton"}
    try:
        import pwd

        pwd.getpwuid(os.getuid())
    except KeyError:
        # torch asks for the user's name; with --user NUMBER there is none.
        added["USER"] = f"user{os.getuid()}"
    return {name: value for name, value in added.items() if not environment.get(name)}


def _pauses(seconds: float) -> Callable[[], bool]:
    """A sleep that grows; it says when the time is over."""
    deadline, pause = time.monotonic() + seconds, _FIRST_PAUSE

    def sleep() -> bool:
        nonlocal pause
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, _LONGEST_PAUSE)
        return True

    return sleep


def wait_for_head(wait: Wait) -> None:
    """Wait until Ray's head listens.

    Raises:
        UnavailableError: it does not within the time.
    """
    host, _, port = wait.address.rpartition(":")
    sleep = _pauses(wait.seconds)
    said = False
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            return
        if not said:
            say(f"waiting up to {wait.seconds} s for the head at {wait.address} ({reason})")
            said = True
        if not sleep():
            raise UnavailableError(
                f"the head at {wait.address} did not answer within {wait.seconds} s: {reason}",
                cause="it is not started, HEAD_IP or RAY_PORT is another, or a firewall is between the nodes",
                remedy="start the head first; on this node, `ping` HEAD_IP; RAY_WAIT_SECONDS waits longer",
            )


def _nodes(address: str) -> list[dict[str, Any]]:
    """The nodes of a running cluster, asked in a process of its own: a connected Ray would outlive the question."""
    program = (
        "import json, pathlib, ray, sys; ray.init(sys.argv[1], log_to_driver=False); "
        "pathlib.Path(sys.argv[2]).write_text(json.dumps(ray.nodes()))"
    )
    # Not by stdout, to which Ray writes too.
    with tempfile.NamedTemporaryFile(prefix="sparkwright-nodes-") as answer:
        run([sys.executable, "-c", program, address, answer.name])
        found: list[dict[str, Any]] = json.loads(Path(answer.name).read_bytes())
    return found


def wait_for_nodes(wait: Wait) -> None:
    """Wait until all nodes have joined the cluster.

    Raises:
        UnavailableError: they have not within the time; the message lists who is there.
    """
    sleep = _pauses(wait.seconds)
    seen = ""
    while True:
        nodes = _nodes(wait.address)
        alive = sum(bool(node.get("Alive")) for node in nodes)
        if alive >= wait.nodes:
            say(f"{alive} of {wait.nodes} nodes are there: {describe_nodes(nodes)}")
            return
        if describe_nodes(nodes) != seen:
            seen = describe_nodes(nodes)
            say(f"{alive} of {wait.nodes} nodes are there: {seen}; waiting up to {wait.seconds} s")
        if not sleep():
            raise UnavailableError(
                f"{alive} of NNODES={wait.nodes} nodes joined within {wait.seconds} s: {seen}",
                cause="a worker is not started, has another token, or cannot reach the head",
                remedy="look at the workers' logs; RAY_WAIT_SECONDS waits longer",
            )


def start(plan: Plan) -> NoReturn:
    """Check, wait, and become the planned command."""
    for notice in plan.notices:
        say(notice)
    program = find(plan.argv[0])
    environment = {name: value for name, value in os.environ.items() if name not in plan.unset}
    environment |= {**plan.env, **plan.secrets}
    for name in plan.secrets:
        environment.pop(f"{name}_FILE", None)
    if plan.listen:
        check_port(*plan.listen)
    if plan.check:
        from sparkwright.entrypoint.check import check

        for notice in check(plan.check, plan.marlin):
            say(notice)
    if plan.needs_cache:
        environment |= check_home(environment)
    os.environ.clear()
    os.environ.update(environment)
    if plan.state:  # not for `health` and other commands beside the server
        state.clear()
        state.write("state", plan.state)
    if plan.before:
        say(f"starting {' '.join(plan.before[:3])}")
        run([find(plan.before[0]), *plan.before[1:]])
    if plan.wait:
        {"head": wait_for_head, "nodes": wait_for_nodes}[plan.wait.until](plan.wait)
    if plan.state:
        say(f"+ {shlex.join(plan.argv)}")
    if plan.smoke:
        smoke = (sys.executable, "-m", "sparkwright.entrypoint.smoke")
        os.execve(sys.executable, (*smoke, program, *plan.argv[1:]), environment)  # noqa: S606  the point of an entrypoint
    os.execve(program, plan.argv, environment)  # noqa: S606  the point of an entrypoint
