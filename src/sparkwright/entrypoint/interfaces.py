"""The network interface and RDMA devices over which this node reaches the others, from its routes and sysfs."""

import ipaddress
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sparkwright.entrypoint.plan import Host


@dataclass(frozen=True, kw_only=True)
class Route:
    """One line of the IPv4 routing table."""

    interface: str
    network: ipaddress.IPv4Network
    metric: int


def routes(root: Path) -> list[Route]:
    """The IPv4 routing table of this network namespace."""
    try:
        lines = (root / "proc/net/route").read_text(encoding="utf-8").splitlines()[1:]
    except OSError:
        return []
    found = []
    for line in lines:
        fields = line.split()
        if len(fields) < 8 or not int(fields[3], 16) & 1:  # bit 0: the route is up
            continue
        address, mask = (ipaddress.IPv4Address(struct.pack("<L", int(fields[column], 16))) for column in (1, 7))
        network = ipaddress.IPv4Network(f"{address}/{mask}", strict=False)
        found.append(Route(interface=fields[0], network=network, metric=int(fields[6])))
    return found


def interface_to(target: str, root: Path) -> str | None:
    """The interface of the most specific route to an IPv4 address."""
    try:
        address = ipaddress.IPv4Address(target)
    except ValueError:
        return None
    fitting = [route for route in routes(root) if address in route.network]
    best = max(fitting, key=lambda route: (route.network.prefixlen, -route.metric), default=None)
    return best.interface if best and best.interface != "lo" else None


def _active(device: Path) -> bool:
    """Whether a port of an RDMA device is up."""
    return any("ACTIVE" in state.read_text(encoding="utf-8") for state in device.glob("ports/*/state"))


def _netdevs(device: Path) -> set[str]:
    return {path.name for path in device.glob("device/net/*")}


def _function(device: Path) -> str:
    """The PCI bus, device and function without the domain: the same for the two halves of one Spark port."""
    return (device / "device").resolve().name.partition(":")[2]


def rdma_devices(interface: str, root: Path) -> list[str]:
    """The RDMA device behind an interface, and its twin.

    A port of the Spark's ConnectX-7 appears twice, in two PCI domains, each with half of the bandwidth. The twin counts
    when its link is up and its interface has an address: without one RoCE has nothing to send from.
    """
    folder = root / "sys/class/infiniband"
    devices = [device for device in sorted(folder.glob("*")) if _active(device)]
    addressed = {route.interface for route in routes(root)}
    first = [device for device in devices if interface in _netdevs(device)]
    twins = [
        device
        for device in devices
        if device not in first
        and _netdevs(device) & addressed
        and _function(device) in {_function(each) for each in first}
        and _function(device)
    ]
    return [device.name for device in (*first, *twins)]


def choose(target: str, environment: Mapping[str, str], host: Host) -> Iterator[tuple[str, str]]:
    """The variables of NCCL and Gloo that the user has not set, for talking to `target`.

    The GID index is left alone: it differs between devices and changes over reboots, and NCCL finds it for each.
    """
    interface = interface_to(target, host.root)
    if interface is None:
        return
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        if not environment.get(name):
            yield name, interface
    if not environment.get("NCCL_IB_HCA") and (devices := rdma_devices(interface, host.root)):
        # The sign of equality asks for exactly these: without it mlx5_1 would also be mlx5_10.
        yield "NCCL_IB_HCA", f"={','.join(devices)}"
