"""Which node of a cluster gets which actor, and the refusals instead of a wait without end."""

from typing import Any

import pytest

from sparkwright.errors import ConfigurationError
from sparkwright.quantize.placement import Node, in_order, place


def _told(name: str, address: str, memory: float, *, alive: bool = True, **resources: float) -> dict[str, Any]:
    """A node as Ray tells of it; the memory is what was free when it was started."""
    has = {"memory": memory, **resources}
    return {"NodeID": name, "NodeManagerAddress": address, "Alive": alive, "Resources": has}


def test_the_order_outlives_a_restart() -> None:
    """Whatever was free then, and whichever came first."""
    first, second = _told("x", "10.0.0.20", 120e9, CPU=20), _told("y", "10.0.0.3", 119e9, CPU=20)
    head = _told("z", "10.0.0.100", 1e9, CPU=20)
    before = in_order([first, second, head], "z")
    assert [one.address for one in before] == ["10.0.0.100", "10.0.0.3", "10.0.0.20"]
    first["Resources"], second["Resources"] = second["Resources"], first["Resources"]
    gone = _told("w", "10.0.0.1", 1e9, alive=False)
    assert in_order([head, gone, second, first], "z") == before


def _nodes(*gpus: float, cpus: float = 2) -> list[Node]:
    return [Node(id=str(one), address=f"10.0.0.{one}", cpus=cpus, gpus=has) for one, has in enumerate(gpus)]


def test_actors_go_to_the_nodes_in_turn_as_long_as_there_is_room() -> None:
    nodes = _nodes(1, 2, 0)
    assert place(nodes, None, 1, gpu=False) == nodes
    assert [one.id for one in place(nodes, 6, 1, gpu=False)] == ["0", "1", "2", "0", "1", "2"]
    assert [one.id for one in place(nodes, 3, 1, gpu=True)] == ["0", "1", "1"]


def test_a_node_without_a_gpu_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"^10\.0\.0\.1 cannot hold an actor") as refused:
        place(_nodes(1, 0, 1), None, 1, gpu=True)
    assert "10.0.0.1 has 2 CPUs and 0 GPUs" in refused.value.cause
    assert "--actors 2" in refused.value.remedy


@pytest.mark.parametrize(("threads", "gpu", "room"), [(2, False, 2), (1, True, 1), (4, False, 0)])
def test_more_than_the_nodes_can_hold_is_refused(threads: int, gpu: bool, room: int) -> None:
    with pytest.raises(ConfigurationError, match=f"3 actors were asked for, the nodes have room for {room}"):
        place(_nodes(1, 0), 3, threads, gpu=gpu)
