"""The inputs of layers, all calibration samples of them, in files that others read while they are written.

From time to time one of these files is brought to the disk and noted; an interrupted run goes on there.
"""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sparkwright.files import explain_write_errors
from sparkwright.quantize.activations import Activations
from sparkwright.quantize.architecture import Architecture
from sparkwright.quantize.state import read_position, write_position


class Inputs:
    """Files in the folder `scratch`, and a note in the folder `state`."""

    def __init__(self, architecture: Architecture, *, samples: int, length: int, state: Path, scratch: Path) -> None:
        self._samples, self._dtype = samples, architecture.dtype
        self._shape = (1, length, architecture.source.hidden_size)
        with explain_write_errors(scratch):
            state.mkdir(parents=True, exist_ok=True)
            scratch.mkdir(parents=True, exist_ok=True)
        self._scratch, self._note = scratch, state / "position.json"
        # How many samples of a layer's inputs are there.
        self._there: dict[int, int] = {}
        self._more = threading.Condition()
        if (position := self.position) is not None:
            self._there[position] = samples

    @property
    def position(self) -> int | None:
        """The last layer whose inputs are on the disk for sure."""
        position = read_position(self._note)
        return position if position is not None and self._file(position).exists() else None

    @property
    def lost(self) -> int | None:
        """The layer whose inputs were brought to the disk once, if they are not there any more."""
        position = read_position(self._note)
        return position if position is not None and not self._file(position).exists() else None

    def store(self, layer: int, samples: Iterable[Any]) -> None:
        """Write the inputs of a layer anew."""
        self.begin(layer)
        for number, sample in enumerate(samples):
            self.write(layer, number, sample)

    def begin(self, layer: int) -> None:
        """The inputs of a layer are about to be written anew."""
        if read_position(self._note) == layer:
            self._note.unlink()
        self._forget(layer)

    def write(self, layer: int, number: int, sample: Any) -> None:  # noqa: ANN401
        """Write the next sample of a layer's inputs."""
        with self._open(layer, write=True) as file:
            file.write(number, sample)
        with self._more:
            self._there[layer] = number + 1
            self._more.notify_all()

    def read(self, layer: int, number: int) -> Any:  # noqa: ANN401
        """A sample of a layer's inputs, as soon as it is there."""
        with self._more:
            self._more.wait_for(lambda: self._there.get(layer, 0) > number)
        with self._open(layer) as file:
            return file.read(number)

    def samples(self, layer: int) -> Iterator[Any]:
        """All samples of a layer's inputs, each as soon as it is there."""
        return (self.read(layer, number) for number in range(self._samples))

    def save(self, layer: int) -> None:
        """Bring the inputs of a layer to the disk for sure, and note that all layers before are done."""
        before = self.position
        with self._open(layer, write=True) as file:
            file.flush()
        write_position(self._note, layer)
        if before is not None and before != layer:
            self._forget(before)

    def done(self, layer: int) -> None:
        """No layer needs these inputs any more; they stay where a resumed run would begin with them."""
        if layer != self.position:
            self._forget(layer)

    def _forget(self, layer: int) -> None:
        with self._more:
            self._there.pop(layer, None)
        self._file(layer).unlink(missing_ok=True)

    def _open(self, layer: int, *, write: bool = False) -> Activations:
        return Activations(self._file(layer), shape=self._shape, dtype=self._dtype, write=write)

    def _file(self, layer: int) -> Path:
        return self._scratch / f"layer-{layer:05}.bin"
