"""Several nodes: layers are dealt to Ray actors in turn, and every sample goes from actor to actor as soon as it can.

While one actor works on a layer, the next one already works on the layer after it, a sample behind. So all nodes work
at the same time, and every layer is loaded once. Every node needs the unquantized model under the same path. Hidden
states go from node to node; finished layers come here through the object store, unless all nodes share the folder.
All that a resumed run needs is here, as a run in one process leaves it.
"""

import hashlib
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import ray  # type: ignore[import-not-found]
import torch  # type: ignore[import-not-found]
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # type: ignore[import-not-found]

from sparkwright.errors import ConfigurationError, OutputError, SparkwrightError, UnavailableError
from sparkwright.files import open_atomic
from sparkwright.quantize.actor import AHEAD, BESIDE, About, LayerActor, pack, receive
from sparkwright.quantize.architecture import resolve_device
from sparkwright.quantize.calibration import Samples
from sparkwright.quantize.display import Display
from sparkwright.quantize.inputs import Inputs
from sparkwright.quantize.options import Nodes, Options
from sparkwright.quantize.placement import in_order, place
from sparkwright.quantize.plan import Plan, deal_layers
from sparkwright.quantize.source import Source
from sparkwright.quantize.state import without_gap
from sparkwright.report import gigabytes

_REACH_SECONDS: Final = 10
_START_SECONDS: Final = 300
"""Until every actor has loaded its libraries and read the model's headers."""


def on_nodes(
    source: Source,
    options: Options,
    nodes: Nodes,
    plan: Plan,
    samples: Samples,
    *,
    start: int,
    inputs: Inputs,
    shard: Callable[[int], Path],
    display: Display,
) -> list[dict[str, Any]]:
    """Quantize the layers from `start` on; what each node says of itself.

    Finished layers come here, and from time to time the inputs of the next one: what a node has can be lost.
    """
    _reach(nodes.address)
    before = signal.getsignal(signal.SIGTERM)
    try:
        # "local" is a cluster of its own, even where another one runs on this machine.
        ray.init(
            address=nodes.address,
            include_dashboard=False if nodes.address == "local" else None,
            log_to_driver=False,
            configure_logging=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UnavailableError(
            f"the Ray cluster {nodes.address} cannot be reached: {error}",
            remedy="start it with `ray start --head`, or use --ray local",
        ) from error
    signal.signal(signal.SIGTERM, before)  # Ray has put its own there, which says nothing
    try:
        return _Pipeline(source, options, nodes, plan, samples, inputs, shard, display).go(start)
    except ray.exceptions.RayError as error:
        # What fails in one actor reaches the driver through the actors after it, wrapped once by each.
        cause: BaseException | None = error
        while isinstance(cause, ray.exceptions.RayTaskError):
            cause = cause.cause
        if isinstance(cause, SparkwrightError):
            raise cause from error
        if not isinstance(cause, ray.exceptions.RayError):
            raise
        raise UnavailableError(
            "an actor ended before its work was done",
            cause="its node or process died, for instance for lack of memory",
            remedy="see that the node is back, then run the same command with --resume",
        ) from error
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Look whether anything listens at HOST:PORT: Ray itself tries for many minutes and says nothing."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
    except OSError as error:
        raise UnavailableError(
            f"the Ray cluster {address} cannot be reached: {error}",
            remedy="start it with `ray start --head --port PORT` on that host, or use --ray local",
        ) from error


class _Pipeline:
    def __init__(
        self,
        source: Source,
        options: Options,
        nodes: Nodes,
        plan: Plan,
        samples: Samples,
        inputs: Inputs,
        shard: Callable[[int], Path],
        display: Display,
    ) -> None:
        self._source, self._options, self._nodes, self._plan = source, options, nodes, plan
        self._samples, self._inputs, self._shard, self._display = samples, inputs, shard, display
        self._dtype = getattr(torch, source.dtype)
        # The same kind on every node: one that sees no GPU must not take its CPU. Ray shows each actor its GPU alone.
        self._device = resolve_device(options.device).partition(":")[0]
        here = ray.get_runtime_context().get_node_id()
        self._places = place(
            in_order(ray.nodes(), here),
            len(nodes.shard_layers) or nodes.actors,
            options.threads,
            gpu=self._device != "cpu",
        )
        # Where a folder for scratch files is named, this process keeps its own there too.
        self._kept = {here: plan.kept} if options.scratch is not None else {}
        self._owners = deal_layers(source.layers, len(self._places), nodes.shard_layers)
        self._asides: list[Any] = []
        self._actors = [self._start(number) for number in range(len(self._places))]

    def _start(self, number: int) -> Any:  # noqa: ANN401
        # Every actor may be asked for samples by all others and by this process, and for a finished layer.
        kind = ray.remote(concurrency_groups={BESIDE: AHEAD * (len(self._places) + 1) + 1})(LayerActor)
        node = self._places[number]
        output = self._options.output.absolute()
        # The same after a restart, so that what an interrupted run left there goes.
        name = f"sparkwright-quantize-{hashlib.sha256(os.fsencode(output)).hexdigest()[:16]}"
        # Two nodes of one machine have one folder for temporary files.
        before = [place.address for place in self._places[:number]].count(node.address)
        return kind.options(
            num_cpus=self._options.threads,
            num_gpus=int(self._device != "cpu"),
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        ).remote(
            replace(self._options, device=self._device),
            len(self._samples.tokens),
            f"{name}/{before}",
            self._source.copies_digest,
            output if self._nodes.shared_folder else None,
        )

    def go(self, start: int) -> list[dict[str, Any]]:
        with self._display.phase("starting the actors"):
            try:
                about: list[About] = ray.get([actor.open.remote() for actor in self._actors], timeout=_START_SECONDS)
            except ray.exceptions.GetTimeoutError as error:
                raise UnavailableError(
                    f"not all nodes have started their actors after {_START_SECONDS} s",
                    cause="another program of the Ray cluster holds their CPUs or GPUs: `ray status` says so",
                    remedy="end it, then run the same command with --resume",
                ) from error
        self._check(about)
        self._work(start)
        ray.get(self._asides)
        reports: list[dict[str, Any]] = ray.get([actor.close.remote() for actor in self._actors])
        return [
            {"layers": [layer for layer in self._layers if self._owners[layer] == number], **one}
            for number, one in enumerate(reports)
        ]

    @property
    def _layers(self) -> range:
        return range(self._source.layers)

    def _check(self, about: Sequence[About]) -> None:
        for node in dict.fromkeys(self._places):
            there = [one for one, place in zip(about, self._places, strict=True) if place == node]
            host = there[0].host
            need, free = self._plan.memory * len(there), min(one.memory_available for one in there)
            if need > free:
                raise ConfigurationError(
                    f"{host} has {gigabytes(free)} of memory free, {gigabytes(need)} are needed",
                    cause=f"{len(there)} of the run's actors are there, each with a layer in memory",
                    remedy="end other programs there, or lower --length",
                )
            need = self._plan.scratch * len(there) + self._kept.get(node.id, 0)
            free = min(one.disk_free for one in there)
            if need > free and not self._options.resume:
                raise OutputError(
                    f"{host} has {gigabytes(free)} of disk free for {there[0].folder}, {gigabytes(need)} are needed",
                    remedy="name another folder of the nodes with --scratch, or lower --samples or --length",
                )

    def _work(self, start: int) -> None:
        first = self._actors[self._owners[start]]
        if start == 0:
            ray.get(first.begin.remote([list(one) for one in self._samples.tokens]))
        else:
            for number, sample in enumerate(self._inputs.samples(start)):
                ray.get(first.write.remote(start, number, pack(sample)))
        self._display.expect("quantizing", self._source.layers - start)
        running = {}
        for layer in self._layers[start:]:
            owner, holder = self._owners[layer], self._holder(layer, start)
            source = None if owner == holder else self._actors[holder]
            running[self._actors[owner].layer.remote(layer, source)] = layer
        done: set[int] = set()
        finished = start
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            layer = running.pop(ready)
            ray.get(ready)
            self._fetch(layer)
            done.add(layer)
            # In order: a layer may be done before the actor that made its inputs has brought them to the disk.
            for one in without_gap(done, finished):
                finished = one + 1
                if self._plan.saves(finished):
                    self._save(finished)
                self._asides.append(self._actors[self._holder(one, start)].done.remote(one))
            self._display.advance("quantizing", detail=" layers")

    def _holder(self, layer: int, start: int) -> int:
        """The actor that has the inputs of a layer: where the layer before was, or where the run begins."""
        return self._owners[layer - 1 if layer > start else start]

    def _save(self, layer: int) -> None:
        """Bring inputs here: a run goes on with them on other nodes too, or without any."""
        holder = self._actors[self._owners[layer - 1]]
        self._inputs.store(layer, receive(holder, layer, len(self._samples.tokens), self._dtype))
        self._inputs.save(layer)

    def _fetch(self, layer: int) -> None:
        actor, path = self._actors[self._owners[layer]], self._shard(layer)
        if self._nodes.shared_folder:
            return
        if not path.exists():
            with open_atomic(path) as target:
                at = 0
                while piece := ray.get(actor.piece.remote(layer, at)):
                    target.write(piece)
                    at += len(piece)
        self._asides.append(actor.drop.remote(layer))
