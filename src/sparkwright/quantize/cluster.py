"""Several nodes: layers are dealt to Ray actors in turn, and every sample goes from actor to actor as soon as it can.

While one actor works on a layer, the next one already works on the layer after it, a sample behind. So all nodes work
at the same time, and every layer is loaded once. Every node needs the unquantized model under the same path. Hidden
states go from node to node; finished layers come here through the object store, unless all nodes share the folder.
"""

import hashlib
import json
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray  # type: ignore[import-not-found]
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # type: ignore[import-not-found]

from sparkwright.errors import ConfigurationError, OutputError, SparkwrightError, UnavailableError
from sparkwright.files import open_atomic
from sparkwright.quantize.actor import AHEAD, BESIDE, About, LayerActor
from sparkwright.quantize.architecture import resolve_device
from sparkwright.quantize.calibration import Samples
from sparkwright.quantize.display import Display
from sparkwright.quantize.options import Nodes, Options
from sparkwright.quantize.plan import Plan, deal_layers
from sparkwright.quantize.source import Source
from sparkwright.quantize.state import first_layer, superseded, without_gap
from sparkwright.report import gigabytes


def on_nodes(
    source: Source,
    options: Options,
    nodes: Nodes,
    plan: Plan,
    samples: Samples,
    *,
    identity: Mapping[str, Any],
    shard: Callable[[int], Path],
    display: Display,
) -> list[dict[str, Any]]:
    """Quantize all layers on the nodes of a cluster and bring the shards here; what each node says of itself."""
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
        return _Pipeline(source, options, nodes, plan, samples, identity, shard, display).go()
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


class _Pipeline:
    def __init__(
        self,
        source: Source,
        options: Options,
        nodes: Nodes,
        plan: Plan,
        samples: Samples,
        identity: Mapping[str, Any],
        shard: Callable[[int], Path],
        display: Display,
    ) -> None:
        self._source, self._options, self._nodes, self._plan = source, options, nodes, plan
        self._samples, self._shard, self._display = samples, shard, display
        text = json.dumps([dict(identity), str(options.output.absolute())], sort_keys=True)
        self._name = f"sparkwright-quantize-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        alive = [node for node in ray.nodes() if node["Alive"]]
        # The most memory first; the address makes it the same order next time.
        alive.sort(key=lambda node: (-node["Resources"].get("memory", 0), node["NodeManagerAddress"]))
        count = len(nodes.shard_layers) or nodes.actors or len(alive)
        self._owners = deal_layers(source.layers, count, nodes.shard_layers)
        self._asides: list[Any] = []
        self._actors = [self._start(number, count, alive[number % len(alive)]) for number in range(count)]

    def _start(self, number: int, count: int, node: Mapping[str, Any]) -> Any:  # noqa: ANN401
        # Every actor may be asked for samples by all others, and by this process for a finished layer.
        kind = ray.remote(concurrency_groups={BESIDE: AHEAD * count + 1})(LayerActor)
        return kind.options(
            num_cpus=self._nodes.cpus_per_actor,
            num_gpus=0 if resolve_device(self._options.device) == "cpu" else 1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote(
            self._options,
            len(self._samples.tokens),
            self._plan.save_every,
            f"{self._name}/actor-{number}",
            self._source.tensors_digest,
            self._options.output.absolute() if self._nodes.shared_folder else None,
        )

    def go(self) -> list[dict[str, Any]]:
        about: list[About] = ray.get([actor.about.remote() for actor in self._actors])
        self._check(about)
        there = {one for one in self._layers if self._shard(one).exists() or one in about[self._owners[one]].shards}
        start = first_layer([one.position for one in about], self._owners, there)
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
        for host in sorted({one.host for one in about}):
            there = [one for one in about if one.host == host]
            need, free = self._plan.memory * len(there), min(one.memory_available for one in there)
            if need > free:
                raise ConfigurationError(
                    f"{host} has {gigabytes(free)} of memory free, {gigabytes(need)} are needed",
                    cause=f"{len(there)} of the run's actors are there, each with a layer in memory",
                    remedy="end other programs there, or lower --length",
                )
            need, free = self._plan.scratch * len(there), min(one.disk_free for one in there)
            if need > free and not self._options.resume:
                raise OutputError(
                    f"{host} has {gigabytes(free)} of disk free for {there[0].folder}, {gigabytes(need)} are needed",
                    remedy="name another folder of the nodes with --scratch, or lower --samples or --length",
                )

    def _work(self, start: int) -> None:
        holder = self._owners[start - 1] if start else self._owners[0]
        if start == 0:
            ray.get(self._actors[holder].begin.remote([list(one) for one in self._samples.tokens]))
        self._display.expect("quantizing", self._source.layers - start)
        running = {}
        for layer in self._layers[start:]:
            owner = self._owners[layer]
            source = None if owner == holder else self._actors[holder]
            running[self._actors[owner].layer.remote(layer, source)] = layer
            holder = owner
        for layer in self._layers[:start]:
            self._fetch(layer)
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
                for old in superseded(one, self._plan.save_every):
                    self._asides.append(self._actors[self._owners[max(old - 1, 0)]].forget.remote(old))
            self._display.advance("quantizing", detail=" layers")

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
