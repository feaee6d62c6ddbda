"""Several nodes: a Ray actor for each range of layers, several batches under way, shards through the object store.

Every node needs the unquantized model under the same path. An actor keeps its state on its own node; the driver keeps
none. A batch's hidden states stay with the range that made them until the next range is through with them, so a run
that lost an actor can go on.
"""

import hashlib
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import psutil
import ray  # type: ignore[import-not-found]
import torch  # type: ignore[import-not-found]
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # type: ignore[import-not-found]

from sparkwright.errors import ConfigurationError, InputUnreadableError, SparkwrightError, UnavailableError, UsageError
from sparkwright.files import exclusive_lock, explain_write_errors, open_atomic
from sparkwright.quantize.calibration import Samples
from sparkwright.quantize.display import Display
from sparkwright.quantize.engine import Architecture, quiet, resolve_device
from sparkwright.quantize.options import Options
from sparkwright.quantize.output import shard_name
from sparkwright.quantize.plan import Plan, batch_sizes, memory_available, split_layers
from sparkwright.quantize.source import Source, read_source
from sparkwright.quantize.worker import Range, Worker

_PIECE: Final = 64 * 1024 * 1024


class RangeActor:
    """A worker on a node."""

    def __init__(self, options: Options, work: Range, identity: str, digest: str, shared: Path | None) -> None:
        torch.set_num_threads(options.threads)
        self._stack = ExitStack()
        self._stack.enter_context(quiet())
        source = read_source(options.source)
        if source.tensors_digest != digest:
            raise InputUnreadableError(
                f"{source.root} is another model on this node", remedy="put the same files under that path on all nodes"
            )
        base = options.scratch or Path(tempfile.gettempdir())
        self._folder = base.absolute() / f"sparkwright-quantize-{identity}" / f"layers-{work.first}-{work.end}"
        with explain_write_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(exclusive_lock(self._folder, doing="quantizing"))
        self._shards = shared or self._folder / "shards"
        self._work, self._options, self._layers = work, options, source.layers
        self._architecture = Architecture(source, resolve_device(options.device))
        self._worker = Worker(
            self._architecture,
            options.recipe,
            work,
            state=self._folder,
            scratch=self._folder / "activations",
            shard=self._shard,
        )

    def _shard(self, layer: int) -> Path:
        return self._shards / shard_name(layer, self._layers)

    def about(self) -> dict[str, Any]:
        """Where it is, what it has, and how far it came before."""
        return {
            "layers": [self._work.first, self._work.end],
            "host": os.uname().nodename,
            "memory_available": memory_available(),
            "memory": psutil.virtual_memory().total,
            "next_batch": self._worker.next_batch,
        }

    def run(self, batch: int, given: Any) -> Any:  # noqa: ANN401
        """Send a batch through the layers; `given` are token ids for the first range, else hidden states."""
        if self._worker.next_batch <= batch:
            self._worker.run(batch, lambda: self._inputs(given))
        if self._work.end == self._layers:
            self._worker.forget_outputs(batch)
            return None
        if not self._worker.has_outputs(batch):
            return None
        return torch.cat(list(self._worker.outputs(batch))).view(torch.int16).numpy()

    def _inputs(self, given: Any) -> Iterator[Any]:  # noqa: ANN401
        if self._work.first == 0:
            return self._architecture.first_inputs(map(torch.tensor, given))
        if given is None:
            raise ConfigurationError(
                f"the hidden states for layer {self._work.first} are gone",
                cause="this range began anew, on another node than before",
                remedy="remove the output folder and start anew",
            )
        hidden = torch.from_numpy(given.copy()).view(self._architecture.dtype)
        return iter(hidden.split(1))

    def forget(self, batch: int) -> None:
        """The next range is through with a batch."""
        self._worker.forget_outputs(batch)

    def export(self) -> dict[str, Any]:
        """Write the shards of the range."""
        self._worker.export()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"layers": [self._work.first, self._work.end], "host": os.uname().nodename, "peak_rss_bytes": peak}

    def piece(self, layer: int, at: int) -> bytes:
        """Part of a shard."""
        with self._shard(layer).open("rb") as stream:
            stream.seek(at)
            return stream.read(_PIECE)

    def close(self) -> None:
        """Remove the state: the run came to its end."""
        shutil.rmtree(self._folder)
        with suppress(OSError):  # another range of this node is not yet closed
            self._folder.parent.rmdir()
        self._stack.close()


def on_nodes(
    source: Source,
    options: Options,
    plan: Plan,
    samples: Samples,
    *,
    identity: Mapping[str, Any],
    shard: Callable[[int], Path],
    display: Display,
) -> list[dict[str, Any]]:
    """Quantize all layers on the nodes of a cluster and bring the shards here; what each node says of itself."""
    nodes = options.nodes
    if nodes is None:
        raise UsageError("no cluster was named", remedy="add --ray auto")
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
    try:
        return _Pipeline(source, options, plan, samples, identity, shard, display).go()
    except ray.exceptions.RayError as error:
        # What fails in one range reaches the driver through the ranges after it, wrapped once by each.
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
        plan: Plan,
        samples: Samples,
        identity: Mapping[str, Any],
        shard: Callable[[int], Path],
        display: Display,
    ) -> None:
        self._source, self._options, self._plan, self._samples = source, options, plan, samples
        self._shard, self._display = shard, display
        text = json.dumps([dict(identity), str(options.output.absolute())], sort_keys=True)
        self._identity = hashlib.sha256(text.encode()).hexdigest()[:16]

    def go(self) -> list[dict[str, Any]]:
        actors, ranges = self._place()
        about = ray.get([actor.about.remote() for actor in actors])
        for one in about:
            if self._plan.memory > one["memory_available"]:
                raise ConfigurationError(
                    f"{one['host']} has {one['memory_available'] / 1e9:.1f} GB of memory free, "
                    f"{self._plan.memory / 1e9:.1f} GB are needed",
                    remedy="end other programs there, or lower --length",
                )
        reports = self._work(actors, ranges)
        self._gather(actors, ranges)
        ray.get([actor.close.remote() for actor in actors])
        return reports

    def _place(self) -> tuple[list[Any], list[Range]]:
        nodes = self._options.nodes
        assert nodes is not None
        alive = [node for node in ray.nodes() if node["Alive"]]
        # The most memory first; the address makes it the same order next time.
        alive.sort(key=lambda node: (-node["Resources"].get("memory", 0), node["NodeManagerAddress"]))
        count = len(nodes.shard_layers) or nodes.actors or len(alive)
        counts = split_layers(self._source.layers, count, nodes.shard_layers)
        sizes = batch_sizes(len(self._samples.tokens), nodes.batches)
        device = resolve_device(self._options.device)
        actors, ranges, first = [], [], 0
        for number, layers in enumerate(counts):
            work = Range(
                first=first,
                end=first + layers,
                batch_sizes=sizes,
                length=self._options.calibration.length,
                save_every=self._plan.save_every,
                export_with_last_batch=False,
            )
            node = alive[number % len(alive)]
            actors.append(
                ray.remote(RangeActor)
                .options(
                    num_cpus=nodes.cpus_per_actor,
                    num_gpus=0 if device == "cpu" else 1,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                )
                .remote(
                    self._options,
                    work,
                    self._identity,
                    self._source.tensors_digest,
                    self._options.output.absolute() if nodes.shared_folder else None,
                )
            )
            ranges.append(work)
            first += layers
        return actors, ranges

    def _work(self, actors: Sequence[Any], ranges: Sequence[Range]) -> list[dict[str, Any]]:
        sizes = ranges[0].batch_sizes
        steps = self._source.layers * len(sizes)
        self._display.expect("calibrating", steps)
        pending: dict[Any, tuple[int, int]] = {}
        passed: dict[int, Any] = {}
        exports: list[Any] = []
        at = 0
        for batch, size in enumerate(sizes):
            # As many batches under way as there are ranges, and one more that waits: the object store stays small.
            while len({one for one, _ in pending.values()}) > len(actors):
                self._one_done(actors, ranges, pending)
            passed[batch] = [list(one) for one in self._samples.tokens[at : at + size]]
            at += size
            given: Any = passed.pop(batch)
            for number, actor in enumerate(actors):
                given = actor.run.remote(batch, given)
                pending[given] = (batch, number)
                if batch == len(sizes) - 1:
                    exports.append(actor.export.remote())
        while pending:
            self._one_done(actors, ranges, pending)
        self._display.expect("exporting", self._source.layers)
        reports = []
        for work, one in zip(ranges, exports, strict=True):
            reports.append(ray.get(one))
            self._display.advance("exporting", len(work.layers), detail=" layers")
        return reports

    def _one_done(self, actors: Sequence[Any], ranges: Sequence[Range], pending: dict[Any, tuple[int, int]]) -> None:
        (ready, *_), _ = ray.wait(list(pending), num_returns=1, fetch_local=False)
        batch, number = pending.pop(ready)
        if number == len(actors) - 1:
            # The others' results are not fetched: hidden states go from node to node, and so does a failure.
            ray.get(ready)
        if number > 0:
            actors[number - 1].forget.remote(batch)
        self._display.advance(
            "calibrating", len(ranges[number].layers), detail=f" layers of batches (batch {batch + 1})"
        )

    def _gather(self, actors: Sequence[Any], ranges: Sequence[Range]) -> None:
        nodes = self._options.nodes
        if nodes is not None and nodes.shared_folder:
            return
        self._display.expect("gathering", self._source.layers)
        for actor, work in zip(actors, ranges, strict=True):
            for layer in work.layers:
                self._fetch(actor, layer)
                self._display.advance("gathering", detail=" layers")

    def _fetch(self, actor: Any, layer: int) -> None:  # noqa: ANN401
        path = self._shard(layer)
        if path.exists():
            return
        with open_atomic(path) as target:
            at = 0
            while piece := ray.get(actor.piece.remote(layer, at)):
                target.write(piece)
                at += len(piece)
