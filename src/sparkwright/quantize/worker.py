"""Quantize layers: the same code in one process and in every Ray actor.

A layer's inputs, all calibration samples of them, lie in a file. The layer is loaded, modelopt watches the samples
pass, what comes out goes into the file of the next layer, the quantized layer goes into a file of its own, and all of
it is let go. Another actor may read what comes out as soon as it is there.

From time to time a file of inputs is brought to the disk and noted; an interrupted run goes on there, and does once
more what it had begun.
"""

import gc
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]
from safetensors.torch import save

from sparkwright.files import explain_write_errors, write_atomic
from sparkwright.quantize.activations import Activations
from sparkwright.quantize.architecture import Architecture
from sparkwright.quantize.heap import give_large_blocks_back, give_rest_back
from sparkwright.quantize.options import Recipe
from sparkwright.quantize.stage import Stage
from sparkwright.quantize.state import read_position, write_position


class Worker:
    """Holds no weights between layers; everything that must survive lies in `state` and `scratch`."""

    def __init__(
        self,
        architecture: Architecture,
        recipe: Recipe,
        *,
        samples: int,
        length: int,
        save_every: int,
        state: Path,
        scratch: Path,
        shard: Callable[[int], Path],
    ) -> None:
        self._architecture, self._recipe = architecture, recipe
        self._samples, self._length, self._save_every = samples, length, save_every
        self._scratch, self._shard = scratch, shard
        with explain_write_errors(state):
            state.mkdir(parents=True, exist_ok=True)
            scratch.mkdir(parents=True, exist_ok=True)
        self._position_file = state / "position.json"
        # How many samples of a layer's inputs are there; others read while a layer writes.
        self._there: dict[int, int] = {}
        self._more = threading.Condition()
        if (position := self.position) is not None:
            self._there[position] = samples
        # What is loaded by now stays: collecting garbage after each layer need not look at all of torch.
        gc.collect()
        gc.freeze()
        give_large_blocks_back()

    @property
    def position(self) -> int | None:
        """The last layer whose inputs are on the disk for sure."""
        position = read_position(self._position_file)
        return position if position is not None and self._file(position).exists() else None

    def begin(self, inputs: Iterable[Any]) -> None:
        """Take the inputs of the first layer."""
        self._store(0, inputs)

    def layer(self, number: int, inputs: Iterable[Any] | None = None) -> None:
        """Quantize a layer; its inputs are in a file of this worker, unless they come from elsewhere."""
        following = number + 1
        last = following == len(self._architecture)
        self._quantize(number, self._own(number) if inputs is None else inputs, None if last else following)
        _release()
        if following % self._save_every == 0 and not last:
            with self._open(following) as store:
                store.flush()
            write_position(self._position_file, following)

    def _quantize(self, number: int, inputs: Iterable[Any], following: int | None) -> None:
        stage = Stage(self._architecture, self._recipe, number)

        def send() -> None:
            outputs = map(stage.forward, inputs)
            if following is None:
                deque(outputs, maxlen=0)
            else:
                self._store(following, outputs)

        stage.calibrate(send)
        path = self._shard(number)
        if not path.exists():
            write_atomic(path, save(stage.export(), metadata={"format": "pt"}))

    def read(self, layer: int, sample: int) -> Any:  # noqa: ANN401
        """A sample of a layer's inputs, as soon as it is there."""
        with self._more:
            self._more.wait_for(lambda: self._there.get(layer, 0) > sample)
        with self._open(layer) as store:
            return store.read(sample)

    def forget(self, layer: int) -> None:
        """Nobody needs the inputs of a layer any more."""
        with self._more:
            self._there.pop(layer, None)
        self._file(layer).unlink(missing_ok=True)

    def _own(self, layer: int) -> Iterator[Any]:
        return (self.read(layer, sample) for sample in range(self._samples))

    def _store(self, layer: int, samples: Iterable[Any]) -> None:
        if read_position(self._position_file) == layer:
            self._position_file.unlink()  # what it speaks of is about to be written anew
        with self._more:
            self._there[layer] = 0
        with self._open(layer, create=True) as store:
            for number, sample in enumerate(samples):
                store.write(number, sample)
                with self._more:
                    self._there[layer] = number + 1
                    self._more.notify_all()

    def _open(self, layer: int, *, create: bool = False) -> Activations:
        shape = (1, self._length, self._architecture.source.hidden_size)
        return Activations(self._file(layer), shape=shape, dtype=self._architecture.dtype, create=create)

    def _file(self, layer: int) -> Path:
        return self._scratch / f"layer-{layer:05}.bin"


def _release() -> None:
    gc.collect()
    give_rest_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
