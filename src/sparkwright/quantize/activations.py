"""Hidden states of the calibration samples between two layers, in a scratch file.

The file is read and written a sample at a time, never mapped: what memory is free holds it as page cache, and the
kernel takes that back when a layer needs it.
"""

import os
from pathlib import Path
from typing import Any, Self

import torch  # type: ignore[import-not-found]

from sparkwright.errors import InputUnreadableError
from sparkwright.files import explain_write_errors


class Activations:
    """Samples of one shape and type, by number."""

    def __init__(self, path: Path, *, shape: tuple[int, ...], dtype: Any, write: bool = False) -> None:  # noqa: ANN401
        self.path, self._shape, self._dtype = path, shape, dtype
        self._nbytes = torch.empty(shape, dtype=dtype, device="meta").nbytes
        flags = os.O_RDWR | os.O_CREAT if write else os.O_RDONLY
        with explain_write_errors(path):
            self._handle = os.open(path, flags, 0o644)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def write(self, number: int, sample: Any) -> None:  # noqa: ANN401
        """Store a sample."""
        content = memoryview(sample.detach().to("cpu").contiguous().view(torch.uint8).reshape(-1).numpy())
        at = number * self._nbytes
        with explain_write_errors(self.path):
            while content:
                done = os.pwrite(self._handle, content, at)
                content, at = content[done:], at + done

    def read(self, number: int) -> Any:  # noqa: ANN401
        """The sample, on the CPU."""
        sample = torch.empty(self._shape, dtype=self._dtype)
        content = memoryview(sample.view(torch.uint8).reshape(-1).numpy())
        at = number * self._nbytes
        while content:
            done = os.preadv(self._handle, [content], at)
            if done == 0:
                raise InputUnreadableError(
                    f"{self.path} ended while it was read", remedy="start anew, in another folder"
                )
            content, at = content[done:], at + done
        return sample

    def flush(self) -> None:
        """Bring everything to the disk, so that a state that names this file outlives a power cut."""
        with explain_write_errors(self.path):
            os.fsync(self._handle)
