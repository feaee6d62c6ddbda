"""A worker on a node of a Ray cluster: it quantizes the layers that it is dealt, and gives others what comes out."""

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray  # type: ignore[import-not-found]
import torch  # type: ignore[import-not-found]

from sparkwright.errors import InputUnreadableError, SparkwrightError
from sparkwright.files import exclusive_lock, explain_write_errors
from sparkwright.quantize.architecture import Architecture, resolve_device
from sparkwright.quantize.heap import peak_memory
from sparkwright.quantize.inputs import Inputs
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


def pack(sample: Any) -> Any:  # noqa: ANN401
    """A sample on its way through Ray: numpy has no BF16."""
    return sample.view(torch.uint8).numpy()


def unpack(content: Any, dtype: Any) -> Any:  # noqa: ANN401
    """What was packed."""
    return torch.from_numpy(content.copy()).view(dtype)


def receive(actor: Any, layer: int, samples: int, dtype: Any) -> Iterator[Any]:  # noqa: ANN401
    """The inputs of a layer that an actor has, with some of them on their way while one is in use."""
    under_way: deque[Any] = deque()
    for number in range(samples + AHEAD):
        if number < samples:
            under_way.append(actor.read.remote(layer, number))
        if number >= AHEAD:
            yield unpack(ray.get(under_way.popleft()), dtype)


@contextmanager
def _on_this_node() -> Iterator[None]:
    try:
        yield
    except ray.exceptions.RayError:  # what failed elsewhere says where
        raise
    except SparkwrightError as error:
        error.what = f"on {os.uname().nodename}: {error.what}"
        raise


@dataclass(frozen=True, kw_only=True)
class About:
    """What an actor says of its node."""

    host: str
    folder: str
    memory_available: int
    disk_free: int


class LayerActor:
    """A worker on a node; what it has on its disk is of use only while the run lasts."""

    _architecture: Architecture
    _inputs: Inputs
    _worker: Worker

    def __init__(self, options: Options, samples: int, name: str, digest: str, shared: Path | None) -> None:
        self._options, self._samples, self._digest = options, samples, digest
        base = options.scratch or Path(tempfile.gettempdir())
        self._folder = base.absolute() / name
        self._shards = shared or self._folder / "shards"
        self._stack = ExitStack()

    @_on_this_node()
    def open(self) -> About:
        """Get ready, and say what there is on the node. Not at the creation: Ray does not pass on what fails there."""
        options = self._options
        torch.set_num_threads(options.threads)
        self._stack.enter_context(quiet())
        source = read_source(options.source)
        if source.copies_digest != self._digest:
            raise InputUnreadableError(
                f"{source.root} is not the model of the first node",
                cause="its settings, the tensors' names and places, or some of their values are others",
                remedy="put the same files under that path on all nodes",
            )
        with explain_write_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(exclusive_lock(self._folder, doing="quantizing"))
        for left in self._folder.iterdir():  # by a run that was interrupted
            shutil.rmtree(left)
        self._architecture = Architecture(source, resolve_device(options.device))
        activations = self._folder / "activations"
        self._inputs = Inputs(
            self._architecture,
            samples=self._samples,
            length=options.calibration.length,
            state=activations,
            scratch=activations,
        )
        self._worker = Worker(self._architecture, options.recipe, self._inputs, shard=self._shard)
        return About(
            host=os.uname().nodename,
            folder=str(self._folder),
            memory_available=memory_available(),
            disk_free=shutil.disk_usage(self._folder).free,
        )

    def _shard(self, layer: int) -> Path:
        return self._shards / shard_name(layer, len(self._architecture))

    @_on_this_node()
    def begin(self, tokens: Sequence[Sequence[int]]) -> None:
        """Turn token ids into the inputs of the first layer."""
        self._inputs.store(0, self._architecture.first_inputs(map(torch.tensor, tokens)))

    @_on_this_node()
    def write(self, layer: int, number: int, sample: Any) -> None:  # noqa: ANN401
        """Take a sample of the inputs of the layer that a resumed run begins with."""
        self._inputs.write(layer, number, unpack(sample, self._architecture.dtype))

    @_on_this_node()
    def layer(self, number: int, source: Any) -> None:  # noqa: ANN401
        """Quantize a layer; `source` is the actor that has its inputs, None for this one."""
        received = None if source is None else receive(source, number, self._samples, self._architecture.dtype)
        self._worker.layer(number, received)

    @ray.method(concurrency_group=BESIDE)  # type: ignore[untyped-decorator]
    def read(self, layer: int, sample: int) -> Any:  # noqa: ANN401
        """A sample of a layer's inputs, as soon as it is there."""
        return pack(self._inputs.read(layer, sample))

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
    def done(self, layer: int) -> None:
        """Nobody needs the inputs of a layer any more."""
        self._inputs.done(layer)

    def close(self) -> dict[str, Any]:
        """Remove all that the run left on the node; what it took."""
        shutil.rmtree(self._folder)
        with suppress(OSError):  # another actor of this node is not yet closed
            self._folder.parent.rmdir()
        self._stack.close()
        return {"host": os.uname().nodename, **peak_memory()}
