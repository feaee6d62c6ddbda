"""Quantize layers: the same code in one process and in every Ray actor.

A layer's inputs, all calibration samples of them, lie in a file. The layer is loaded, modelopt watches the samples
pass, what comes out goes into the file of the next layer, the quantized layer goes into a file of its own, and all of
it is let go. Another actor may read what comes out as soon as it is there.
"""

import gc
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]
from safetensors.torch import save

from sparkwright.files import write_atomic
from sparkwright.quantize.architecture import Architecture
from sparkwright.quantize.heap import give_large_blocks_back, give_rest_back
from sparkwright.quantize.inputs import Inputs
from sparkwright.quantize.options import Recipe
from sparkwright.quantize.stage import Stage


class Worker:
    """Holds no weights between layers."""

    def __init__(
        self, architecture: Architecture, recipe: Recipe, inputs: Inputs, *, shard: Callable[[int], Path]
    ) -> None:
        self._architecture, self._recipe, self._inputs, self._shard = architecture, recipe, inputs, shard
        # What is loaded by now stays: collecting garbage after each layer need not look at all of torch.
        gc.collect()
        gc.freeze()
        give_large_blocks_back()

    def layer(self, number: int, inputs: Iterable[Any] | None = None) -> None:
        """Quantize a layer; its inputs are in a file of this worker, unless they come from elsewhere."""
        last = number + 1 == len(self._architecture)
        self._quantize(number, self._inputs.samples(number) if inputs is None else inputs, last=last)
        _release()

    def _quantize(self, number: int, inputs: Iterable[Any], *, last: bool) -> None:
        stage = Stage(self._architecture, self._recipe, number)

        def send() -> None:
            outputs = map(stage.forward, inputs)
            if last:
                deque(outputs, maxlen=0)
            else:
                self._inputs.store(number + 1, outputs)

        stage.calibrate(send)
        path = self._shard(number)
        if not path.exists():
            write_atomic(path, save(stage.export(), metadata={"format": "pt"}))


def _release() -> None:
    gc.collect()
    give_rest_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
