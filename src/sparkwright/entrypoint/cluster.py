"""The Ray modes: a head, a worker, and a head that serves as soon as its nodes have joined."""

import ipaddress
import json
from collections.abc import Mapping, Sequence
from typing import Final

from sparkwright.entrypoint import interfaces, memory, own_kernels
from sparkwright.entrypoint.plan import GIB, Host, Plan, Wait
from sparkwright.entrypoint.variables import Values
from sparkwright.errors import ConfigurationError

# Seen with Ray 2.60: with --node-ip-address=127.0.0.1 its server still listens on every interface.
_OPEN: Final = (
    "Ray listens on every interface, also with HEAD_IP on loopback: without RAY_AUTH_TOKEN anyone who reaches port "
    "{port} of this machine can run programs here"
)
_OBJECT_STORE: Final = GIB  # Ray would reserve 30 % of the unified memory; vLLM passes little through the store


def loopback(address: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def resolved(values: Values, host: Host, name: str) -> str:
    """The IP address that HEAD_IP or WORKER_IP stands for.

    Raises:
        ConfigurationError: it does not resolve.
    """
    text = values.text(name)
    address = host.resolve(text)
    if address is None:
        raise ConfigurationError(
            f"{name}={text} does not resolve to an address",
            cause="a spelling mistake, or a name that this machine's resolver does not know",
            remedy=f"use the address itself: {name}=192.168.100.1",
        )
    return address


def own_address(values: Values, host: Host, head: str) -> str:
    """This node's address where it is not the first node: WORKER_IP, else the one from which the head is reached.

    Raises:
        ConfigurationError: there is no route to the head.
    """
    if values.given("WORKER_IP"):
        return resolved(values, host, "WORKER_IP")
    address = host.source_address(head)
    if address is None:
        raise ConfigurationError(
            f"this machine has no route to HEAD_IP={values.text('HEAD_IP')}",
            cause="the fast interface is down, or the container was started without --network host",
            remedy="docker run --network host; then `ip route get ADDRESS` on the host must show the interface",
        )
    return address


def node_environment(address: str, toward: str, environment: Mapping[str, str], host: Host) -> dict[str, str]:
    """What every node of several needs: its own address, its interfaces, and bounded compilers."""
    chosen = dict(interfaces.choose(toward, environment, host))
    if not environment.get("VLLM_HOST_IP"):
        chosen["VLLM_HOST_IP"] = address
    if not environment.get("MAX_JOBS"):
        chosen["MAX_JOBS"] = str(memory.jobs(host))
    return chosen | own_kernels.switched(Values(environment))


def ray_environment(environment: Mapping[str, str], token: bool) -> dict[str, str]:
    """Ray's own switches, for head, worker and the vLLM that joins them."""
    wanted = {
        "RAY_AUTH_MODE": "token" if token else "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        # On unified memory Ray counts the model as the workers' own memory and kills them.
        "RAY_memory_monitor_refresh_ms": "0",
    }
    return {name: value for name, value in wanted.items() if not environment.get(name)}


def demand_token(address: str, environment: Mapping[str, str], secrets: Mapping[str, str]) -> bool:
    """Whether a token is there; unless HEAD_IP says loopback, one must be.

    Raises:
        ConfigurationError: the cluster can be reached from the network and has no token.
    """
    token = bool(environment.get("RAY_AUTH_TOKEN") or secrets.get("RAY_AUTH_TOKEN"))
    if not token and not (environment.get("HEAD_IP") and loopback(address)):
        raise ConfigurationError(
            f"RAY_AUTH_TOKEN is not set, and the cluster at {address} can be reached from the network",
            cause="without a token anyone who reaches Ray's port can run programs as this container's user",
            remedy="make one, `openssl rand -hex 32`, and give it to every node: RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_FILE",
        )
    return token


def _common(values: Values, address: str) -> list[str]:
    return [
        f"--node-ip-address={address}",
        f"--num-gpus={values.number('NUM_GPUS')}",
        f"--object-store-memory={_OBJECT_STORE}",
        "--disable-usage-stats",
    ]


def _merged(ours: Sequence[str], given: Sequence[str]) -> list[str]:
    """Our options of `ray start`, without those that the user gives."""
    names = {word.partition("=")[0] for word in given}
    return [*(word for word in ours if word.partition("=")[0] not in names), *given]


def head_address(values: Values, host: Host) -> str:
    """The head's own address: HEAD_IP, else the one of the default route."""
    if values.given("HEAD_IP"):
        return resolved(values, host, "HEAD_IP")
    return host.source_address("192.0.2.1") or "127.0.0.1"  # an address that is nowhere: only the route is asked


def plan_head(values: Values, words: Sequence[str], host: Host, secrets: Mapping[str, str], *, block: bool) -> Plan:
    """`ray start --head`; with `block` it is the container's process."""
    environment = values.environment
    address = head_address(values, host)
    token = demand_token(address, environment, secrets)
    port = values.number("RAY_PORT")
    ours = ["ray", "start", "--head", f"--port={port}", *_common(values, address)]
    ours.append(f"--dashboard-host={values.text('RAY_DASHBOARD_HOST')}")
    return Plan(
        argv=(*_merged(ours, words), *(["--block"] if block and "--block" not in words else [])),
        env=node_environment(address, address, environment, host) | ray_environment(environment, token),
        secrets=secrets,
        notices=() if token else (_OPEN.format(port=port),),
        state={"mode": "ray-head", "address": f"{address}:{port}", "node": address},
    )


def plan_worker(values: Values, words: Sequence[str], host: Host, secrets: Mapping[str, str]) -> Plan:
    """`ray start --address`, as soon as the head listens.

    Raises:
        ConfigurationError: HEAD_IP is missing or cannot be reached by a route, or the token is missing.
    """
    environment = values.environment
    if not values.given("HEAD_IP"):
        raise ConfigurationError(
            "HEAD_IP is not set, and a worker must know its head",
            remedy="-e HEAD_IP=ADDRESS: the address that the head has on the network between the nodes",
        )
    head = resolved(values, host, "HEAD_IP")
    token = demand_token(head, environment, secrets)
    address = own_address(values, host, head)
    port = values.number("RAY_PORT")
    ours = ["ray", "start", f"--address={head}:{port}", *_common(values, address)]
    return Plan(
        argv=(*_merged(ours, words), *([] if "--block" in words else ["--block"])),
        env=node_environment(address, head, environment, host) | ray_environment(environment, token),
        secrets=secrets,
        wait=Wait(until="head", address=f"{head}:{port}", nodes=0, seconds=values.number("RAY_WAIT_SECONDS")),
        state={"mode": "ray-worker", "address": f"{head}:{port}", "node": address},
    )


def describe_nodes(nodes: Sequence[Mapping[str, object]]) -> str:
    """The addresses of the nodes that are alive, for people."""
    alive = sorted(str(node.get("NodeManagerAddress")) for node in nodes if node.get("Alive"))
    return ", ".join(alive) or json.dumps(None)
