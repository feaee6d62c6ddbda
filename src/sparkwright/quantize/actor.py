"""A worker on a node of a Ray cluster: it quantizes the layers that it is dealt, and gives others what comes out.

An actor keeps its files on its own node, in a folder that a resumed run finds again.
"""

import os
import resource
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray  # type: ignore[import-not-found]
import torch  # type: ignore[import-not-found]

from sparkwright.errors import InputUnreadableError
from sparkwright.files import exclusive_lock, explain_write_errors
from sparkwright.quantize.architecture import Architecture, resolve_device
from sparkwright.quantize.options import Options
from sparkwright.quantize.output import shard_name
from sparkwright.quantize.plan import memory_available
from sparkwright.quantize.source import read_source
from sparkwright.quantize.stage import quiet
from sparkwright.quantize.worker import Worker

AHEAD: Final = 2
"""Samples that are on their way to an actor while it works on another."""
BESIDE: Final = "beside"
"""The threads of an actor that answer while it works on a layer."""
_PIECE: Final = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class About:
    """What an actor says of its node, and how far it came before."""

    host: str
    folder: str
    memory_available: int
    disk_free: int
    position: int | None
    shards: frozenset[int]


class LayerActor:
    """A worker on a node."""

    def __init__(
        self, options: Options, samples: int, save_every: int, name: str, digest: str, shared: Path | None
    ) -> None:
        torch.set_num_threads(options.threads)
        self._stack = ExitStack()
        self._stack.enter_context(quiet())
        source = read_source(options.source)
        if source.tensors_digest != digest:
            raise InputUnreadableError(
                f"{source.root} is another model on this node", remedy="put the same files under that path on all nodes"
            )
        base = options.scratch or Path(tempfile.gettempdir())
        self._folder = base.absolute() / name
        self._shards = shared or self._folder / "shards"
        with explain_write_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(exclusive_lock(self._folder, doing="quantizing"))
        self._architecture = Architecture(source, resolve_device(options.device))
        self._samples = samples
        self._worker = Worker(
            self._architecture,
            options.recipe,
            samples=samples,
            length=options.calibration.length,
            save_every=save_every,
            state=self._folder,
            scratch=self._folder / "activations",
            shard=self._shard,
        )

    def _shard(self, layer: int) -> Path:
        return self._shards / shard_name(layer, len(self._architecture))

    def about(self) -> About:
        """Where it is, what it has, and how far it came before."""
        return About(
            host=os.uname().nodename,
            folder=str(self._folder),
            memory_available=memory_available(),
            disk_free=shutil.disk_usage(self._folder).free,
            position=self._worker.position,
            shards=frozenset(layer for layer in range(len(self._architecture)) if self._shard(layer).exists()),
        )

    def begin(self, tokens: Sequence[Sequence[int]]) -> None:
        """Turn token ids into the inputs of the first layer."""
        self._worker.begin(self._architecture.first_inputs(map(torch.tensor, tokens)))

    def layer(self, number: int, source: Any) -> None:  # noqa: ANN401
        """Quantize a layer; `source` is the actor that has its inputs, None for this one."""
        self._worker.layer(number, None if source is None else self._from(source, number))

    def _from(self, source: Any, layer: int) -> Iterator[Any]:  # noqa: ANN401
        under_way: deque[Any] = deque()
        for sample in range(self._samples + AHEAD):
            if sample < self._samples:
                under_way.append(source.read.remote(layer, sample))
            if sample >= AHEAD:
                content = ray.get(under_way.popleft())
                yield torch.from_numpy(content.copy()).view(self._architecture.dtype)

    @ray.method(concurrency_group=BESIDE)  # type: ignore[untyped-decorator]
    def read(self, layer: int, sample: int) -> Any:  # noqa: ANN401
        """A sample of a layer's inputs, as soon as it is there; numpy has no BF16."""
        return self._worker.read(layer, sample).view(torch.int16).numpy()

    @ray.method(concurrency_group=BESIDE)  # type: ignore[untyped-decorator]
    def piece(self, layer: int, at: int) -> bytes:
        """Part of a finished layer."""
        with self._shard(layer).open("rb") as stream:
            stream.seek(at)
            return stream.read(_PIECE)

    @ray.method(concurrency_group=BESIDE)  # type: ignore[untyped-decorator]
    def drop(self, layer: int) -> None:
        """A finished layer is where it belongs."""
        self._shard(layer).unlink(missing_ok=True)

    @ray.method(concurrency_group=BESIDE)  # type: ignore[untyped-decorator]
    def forget(self, layer: int) -> None:
        """Nobody needs the inputs of a layer any more."""
        self._worker.forget(layer)

    def close(self) -> dict[str, Any]:
        """Remove all that the run left on the node; what it took."""
        shutil.rmtree(self._folder)
        with suppress(OSError):  # another actor of this node is not yet closed
            self._folder.parent.rmdir()
        self._stack.close()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"host": os.uname().nodename, "peak_rss_bytes": peak}
