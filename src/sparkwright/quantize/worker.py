"""Quantize a range of layers: the same code in one process and in every Ray actor.

Calibration samples come in batches. A batch goes through the layers of the range one after the other: a layer is
loaded, modelopt watches the samples pass, the layer is let go. A quantizer's range over all batches is the largest of
each batch, so doing a layer twice with the same batch changes nothing: an interrupted run may repeat what it had begun.
With the last batch, or in a pass of their own, the layers are exported to one file each.
"""

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]
from safetensors.torch import load_file, save

from sparkwright.files import explain_write_errors, write_atomic
from sparkwright.quantize.activations import Activations
from sparkwright.quantize.engine import Architecture, Stage
from sparkwright.quantize.heap import give_large_blocks_back, give_rest_back
from sparkwright.quantize.options import Recipe
from sparkwright.quantize.state import Position, read_position, write_position

Advance = Callable[[str, int], None]
"""Told after each layer: `calibrate` or `export`, and the layer's number."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """What a worker has to do: the layers from `first` up to but not including `end`."""

    first: int
    end: int
    batch_sizes: tuple[int, ...]
    length: int
    save_every: int
    export_with_last_batch: bool

    @property
    def layers(self) -> range:
        """The numbers of the layers."""
        return range(self.first, self.end)


class Worker:
    """Holds no weights between layers; everything that must survive lies in `state` and `scratch`."""

    def __init__(
        self,
        architecture: Architecture,
        recipe: Recipe,
        work: Range,
        *,
        state: Path,
        scratch: Path,
        shard: Callable[[int], Path],
        advance: Advance = lambda _phase, _layer: None,
    ) -> None:
        self._architecture, self._recipe, self._work = architecture, recipe, work
        self._state, self._scratch, self._shard, self._advance = state, scratch, shard, advance
        with explain_write_errors(state):
            (state / "amax").mkdir(parents=True, exist_ok=True)
            scratch.mkdir(parents=True, exist_ok=True)
        self._position_file = state / "position.json"
        # What is loaded by now stays: collecting garbage after each layer need not look at all of torch.
        gc.collect()
        gc.freeze()
        give_large_blocks_back()

    @property
    def next_batch(self) -> int:
        """The first batch that is not through all layers."""
        position = read_position(self._position_file)
        return position.batch if position else 0

    def run(self, batch: int, inputs: Callable[[], Iterator[Any]]) -> None:
        """Send a batch through the layers; `inputs` gives its samples when they are not in the scratch folder."""
        work = self._work
        position = read_position(self._position_file)
        if position is not None and position.batch > batch:
            return
        start = Position(batch=batch, layer=work.first)
        if position is None or position.batch < batch or position.layer == work.first:
            with self._open(start, create=True) as store:
                for number, sample in enumerate(inputs()):
                    store.write(number, sample)
                store.flush()
            self._commit(start)
        else:
            start = position
        saved = start
        for layer in range(start.layer, work.end):
            here = Position(batch=batch, layer=layer)
            following = Position(batch=batch, layer=layer + 1)
            self._layer(here, following)
            done = layer + 1 - work.first
            if following.layer == work.end or done % work.save_every == 0:
                with self._open(following) as store:
                    store.flush()
                self._commit(following)
                self._forget(saved)
                saved = following
            if here != saved:
                self._forget(here)
        # The outputs stay until the next range has them; a later batch has files of its own.
        self._commit(Position(batch=batch + 1, layer=work.first))

    def outputs(self, batch: int) -> Iterator[Any]:
        """What the last layer gave for each sample of a batch that is done."""
        with self._open(Position(batch=batch, layer=self._work.end)) as store:
            for number in range(self._work.batch_sizes[batch]):
                yield store.read(number)

    def has_outputs(self, batch: int) -> bool:
        """Whether the next range has not yet let them go."""
        return (self._scratch / Position(batch=batch, layer=self._work.end).file).exists()

    def forget_outputs(self, batch: int) -> None:
        """The next range has them, or there is none."""
        self._forget(Position(batch=batch, layer=self._work.end))

    def export(self) -> None:
        """Write the file of every layer that has none yet."""
        for layer in self._work.layers:
            if not self._shard(layer).exists():
                self._export(self._architecture.stage(layer, self._recipe), load_file(self._amax_file(layer)))
                self._advance("export", layer)
                _release()

    def _layer(self, here: Position, following: Position) -> None:
        stage = self._architecture.stage(here.layer, self._recipe)
        amax = self._calibrate(stage, here, following)
        path = self._amax_file(here.layer)
        if here.batch > 0:
            amax = _largest(load_file(path), amax)
        write_atomic(path, save(amax))
        self._advance("calibrate", here.layer)
        last = here.batch == len(self._work.batch_sizes) - 1
        if last and self._work.export_with_last_batch:
            if not self._shard(here.layer).exists():
                self._export(stage, amax)
            self._advance("export", here.layer)
        del stage
        _release()

    def _calibrate(self, stage: Stage, here: Position, following: Position) -> dict[str, Any]:
        with self._open(here) as source, self._open(following, create=True) as target:

            def send() -> None:
                for number in range(self._work.batch_sizes[here.batch]):
                    target.write(number, stage.forward(source.read(number)))

            return stage.calibrate(send)

    def _export(self, stage: Stage, amax: Mapping[str, Any]) -> None:
        tensors = stage.export(amax, self._recipe)
        write_atomic(self._shard(stage.number), save(tensors, metadata={"format": "pt"}))

    def _open(self, position: Position, *, create: bool = False) -> Activations:
        shape = (1, self._work.length, self._architecture.source.hidden_size)
        return Activations(self._scratch / position.file, shape=shape, dtype=self._architecture.dtype, create=create)

    def _amax_file(self, layer: int) -> Path:
        return self._state / "amax" / f"{layer:05}.safetensors"

    def _commit(self, position: Position) -> None:
        write_position(self._position_file, position)

    def _forget(self, position: Position) -> None:
        (self._scratch / position.file).unlink(missing_ok=True)


def _largest(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    both = {name: torch.maximum(one[name], other[name]) for name in one.keys() & other.keys()}
    return {**one, **other, **both}


def _release() -> None:
    gc.collect()
    give_rest_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
