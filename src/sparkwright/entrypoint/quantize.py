"""`quantize`: the command line of that name; with NNODES above 1 it starts the head of the Ray cluster it works on."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence

from sparkwright.entrypoint import cluster
from sparkwright.entrypoint.plan import Host, Plan, Wait
from sparkwright.entrypoint.variables import Values
from sparkwright.errors import ConfigurationError


def plan(values: Values, words: Sequence[str], host: Host, secrets: Mapping[str, str]) -> Plan:
    """Plan `sparkwright quantize`; the other nodes are started as `ray-worker`.

    Raises:
        ConfigurationError: there are several nodes, and HEAD_IP or the token is missing.
    """
    run = Plan(argv=(sys.executable, "-m", "sparkwright", "quantize", *words), secrets=secrets)
    options = {word.partition("=")[0] for word in words}
    if "--help" in options:
        return run
    environment, nodes = values.environment, values.number("NNODES")
    if nodes > 1 and not values.given("HEAD_IP"):
        raise ConfigurationError(
            f"HEAD_IP is not set, and NNODES={nodes} nodes must find each other",
            remedy="-e HEAD_IP=ADDRESS on every node: the address that this one has on the network between the nodes",
        )
    if "--ray" not in options and nodes > 1:
        head = cluster.plan_head(values, (), host, secrets, block=False)
        address = str(head.state["address"])
        run = dataclasses.replace(run, argv=(*run.argv, "--ray", address))
        if "--plan" not in options:
            seconds = values.number("RAY_WAIT_SECONDS")
            run = dataclasses.replace(
                run,
                env=head.env,
                before=head.argv,
                wait=Wait(until="nodes", address=address, nodes=nodes, seconds=seconds),
                notices=head.notices,
            )
    elif "--ray" in options:
        token = bool(environment.get("RAY_AUTH_TOKEN") or secrets.get("RAY_AUTH_TOKEN"))
        run = dataclasses.replace(run, env=cluster.ray_environment(environment, token))
    # What modelopt and Triton compile for the GPU has its place in the cache.
    return dataclasses.replace(run, needs_cache="--plan" not in options)
