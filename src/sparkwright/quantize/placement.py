"""Which node of a Ray cluster each actor goes to."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparkwright.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node, by what Ray says it has."""

    id: str
    address: str
    cpus: float
    gpus: float

    def room(self, threads: int, *, gpu: bool) -> int:
        """How many actors it can hold."""
        return min(int(self.cpus // threads), int(self.gpus) if gpu else sys.maxsize)

    def __str__(self) -> str:
        return f"{self.address} has {self.cpus:g} CPUs and {self.gpus:g} GPUs"


def in_order(told: Iterable[Mapping[str, Any]], first: str) -> list[Node]:
    """The nodes that are alive: the one with the id `first`, then by address. That order outlives a restart."""
    nodes = [
        Node(
            id=one["NodeID"],
            address=one["NodeManagerAddress"],
            cpus=one["Resources"].get("CPU", 0),
            gpus=one["Resources"].get("GPU", 0),
        )
        for one in told
        if one["Alive"]
    ]
    return sorted(nodes, key=lambda node: (node.id != first, [int(part) for part in re.findall(r"\d+", node.address)]))


def place(nodes: Sequence[Node], count: int | None, threads: int, *, gpu: bool) -> list[Node]:
    """The node of each of `count` actors, in turn; without a count, one actor on each node.

    Raises:
        ConfigurationError: there is no room for them; Ray would wait for it forever.
    """
    rooms = [node.room(threads, gpu=gpu) for node in nodes]
    each = f"each takes {threads} of a node's CPUs{' and one GPU' if gpu else ''}; {'; '.join(map(str, nodes))}"
    if count is None and 0 in rooms:
        without = [node.address for node, room in zip(nodes, rooms, strict=True) if not room]
        raise ConfigurationError(
            f"{', '.join(without)} cannot hold an actor",
            cause=each,
            remedy=f"start {'its' if len(without) == 1 else 'their'} container with --gpus all, "
            f"or leave {'it' if len(without) == 1 else 'them'} out with --actors {len(nodes) - len(without)}",
        )
    count = len(nodes) if count is None else count
    if count > sum(rooms):
        raise ConfigurationError(
            f"{count} actors were asked for, the nodes have room for {sum(rooms)}",
            cause=each,
            remedy="see that all nodes are there, or ask for fewer with --actors or --shard-layers",
        )
    placed: list[int] = []
    for _ in range(count):
        with_room = [one for one, room in enumerate(rooms) if placed.count(one) < room]
        placed.append(min(with_room, key=placed.count))
    return [nodes[one] for one in placed]
