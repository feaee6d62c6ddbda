"""The outcome of planning, and the view of the machine that planning reads."""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Something to wait for before the command starts: `head` to listen, or `nodes` to have joined."""

    until: str
    address: str
    nodes: int
    seconds: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will run. `argv` replaces the entrypoint; `before` runs first; `env` and `unset` change the environment.

    `secrets` are set too, but never shown. `listen` is the address that must be free. `state` is left for the
    healthcheck, which cannot see the arguments of the container's command. `check` is the folder whose checkpoint must
    be sound first; `marlin` are the backend options that name Marlin.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    wait: Wait | None = None
    listen: tuple[str, int] | None = None
    state: Mapping[str, str | int | bool] = field(default_factory=dict)
    needs_cache: bool = False
    check: str = ""
    marlin: tuple[str, ...] = ()
    smoke: bool = False

    def as_json(self) -> str:
        """The plan for `--dry-run`, without secrets."""
        shown: dict[str, object] = {"argv": list(self.argv), "env": dict(self.env), "notices": list(self.notices)}
        if self.unset:
            shown["unset"] = list(self.unset)
        if self.before:
            shown["before"] = list(self.before)
        if self.wait:
            shown["wait"] = {
                "until": self.wait.until,
                "address": self.wait.address,
                "nodes": self.wait.nodes,
                "seconds": self.wait.seconds,
            }
        if self.check:
            shown["check"] = self.check
        if self.smoke:
            shown["smoke"] = True
        return json.dumps(shown, indent=2, ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class Host:
    """The machine as planning sees it; tests give another root folder and other figures."""

    root: Path = Path("/")
    memory_total: int | None = None
    memory_available: int | None = None
    cores: int | None = None

    def memory(self) -> tuple[int, int]:
        """Bytes in all, and bytes available with the page cache counted as reclaimable."""
        if self.memory_total is not None and self.memory_available is not None:
            return self.memory_total, self.memory_available
        import psutil

        memory = psutil.virtual_memory()
        return memory.total, memory.available

    def cpu_count(self) -> int:
        """Processors this container may use."""
        return self.cores or len(os.sched_getaffinity(0))

    def resolve(self, name: str) -> str | None:
        """The IP address of a host name or address, or None when it does not resolve."""
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError:
            return None
        return str(found[0][4][0])

    def source_address(self, target: str) -> str | None:
        """The address from which this machine would talk to `target`; no packet is sent."""
        family = socket.AF_INET6 if ":" in target else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((target, 9))
            except OSError:
                return None
            return str(probe.getsockname()[0])
