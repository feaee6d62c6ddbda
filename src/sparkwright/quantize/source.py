"""The unquantized model on disk: its settings, and which of its tensors belong to which decoder layer."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from sparkwright.checkpoint.checkpoint import CONFIG, INDEX, read_checkpoint
from sparkwright.checkpoint.headers import Tensor
from sparkwright.checkpoint.modules import is_vision, prediction_module
from sparkwright.errors import ConfigurationError, InputUnreadableError
from sparkwright.files import sha256_bytes

_PIECE: Final = 4096
_FLOATS: Final = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A folder with config.json and safetensors files."""

    root: Path
    config: Mapping[str, Any]
    text: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @cached_property
    def index_sha256(self) -> str:
        """Of the index file, or, for a model of one file, of the list of its tensors."""
        path = self.root / INDEX
        return sha256_bytes(path.read_bytes() if path.is_file() else self._listing().encode())

    @cached_property
    def digest(self) -> str:
        """Changes with the settings, the tensors' names and places, and with the size or time of a file."""
        state = hashlib.sha256((self.root / CONFIG).read_bytes())
        state.update(self._listing().encode())
        for path in self._by_file():
            about = path.stat()
            state.update(f"{path.name} {about.st_size} {about.st_mtime_ns}\n".encode())
        return state.hexdigest()

    @cached_property
    def copies_digest(self) -> str:
        """Of the settings, the headers and a piece of each tensor: the same for copies on several nodes.

        A fine-tuned model has the settings and headers of its base, and other values in the tensors that were trained.
        """
        state = hashlib.sha256((self.root / CONFIG).read_bytes() + self._listing().encode())
        for path, tensors in self._by_file().items():
            with path.open("rb", buffering=0) as stream:
                for one in tensors:
                    stream.seek(one.offset + max(0, one.nbytes - _PIECE) // 2)
                    state.update(stream.read(min(one.nbytes, _PIECE)))
        return state.hexdigest()

    def _by_file(self) -> dict[Path, list[Tensor]]:
        files: dict[Path, list[Tensor]] = {}
        for tensor in sorted(self.tensors.values(), key=lambda one: (one.path.name, one.offset)):
            files.setdefault(tensor.path, []).append(tensor)
        return files

    def _listing(self) -> str:
        rows = [f"{one.name} {one.dtype} {one.shape} {one.path.name} {one.offset}\n" for one in self.tensors.values()]
        return "".join(sorted(rows))

    @property
    def layers(self) -> int:
        """Number of decoder layers by the settings."""
        return int(self.text["num_hidden_layers"])

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.text["hidden_size"])

    @property
    def dtype(self) -> str:
        """Torch's name of the type of the weights: what the settings say, else what most bytes are stored as."""
        said = self.config.get("dtype") or self.config.get("torch_dtype")
        if isinstance(said, str) and said in _FLOATS.values():
            return said
        stored: dict[str, int] = {}
        for tensor in self.tensors.values():
            stored[tensor.dtype] = stored.get(tensor.dtype, 0) + tensor.nbytes
        most = max(stored, key=lambda name: stored[name])
        if most not in _FLOATS:
            raise ConfigurationError(
                f"{self.root}: most weights are stored as {most}",
                cause="only BF16, F16 and F32 models can be quantized",
                remedy="name the folder of the unquantized model",
            )
        return _FLOATS[most]

    def prediction_module(self, name: str) -> str | None:
        """The module for multi-token prediction that a tensor lies in; None for tensors of plain decoding."""
        more = self.text.get("num_nextn_predict_layers")
        return prediction_module(name, range(self.layers, self.layers + (more if isinstance(more, int) else 0)))

    @cached_property
    def has_vision(self) -> bool:
        """Whether there are tensors of what sees or hears beside the language model."""
        return any(map(is_vision, self.tensors))


def read_source(root: Path) -> Source:
    """Read the headers of an unquantized model.

    Raises:
        InputUnreadableError: there is no such folder, or its files are damaged.
        ConfigurationError: it is quantized already, or not a decoder-only language model.
    """
    if not root.is_dir():
        hub = len(root.parts) == 2 and not root.is_absolute()
        raise InputUnreadableError(
            f"{root} is not a folder",
            cause="a model of the hub must be downloaded first"
            if hub
            else "it is elsewhere, or not mounted into the container",
            remedy=f"hf download {root if hub else 'OWNER/NAME'} --local-dir FOLDER, then name FOLDER instead",
        )
    checkpoint = read_checkpoint(root)
    if checkpoint.has_broken_shard or checkpoint.file_findings:
        codes = ", ".join(sorted({one.rule.code for one in checkpoint.file_findings}))
        raise InputUnreadableError(
            f"{root} is not a whole model: {codes}",
            remedy=f"sparkwright checkpoint verify {root} says more",
        )
    if checkpoint.quant is not None:
        raise ConfigurationError(
            f"{root} is quantized already",
            cause="its settings have a quantization_config",
            remedy="name the folder of the unquantized model",
        )
    missing = [name for name in ("num_hidden_layers", "hidden_size") if not isinstance(checkpoint.text.get(name), int)]
    if missing:
        raise ConfigurationError(
            f"{root}/{CONFIG} does not say {' and '.join(missing)}",
            cause="only decoder-only language models can be quantized",
        )
    return Source(root=root.absolute(), config=checkpoint.config, text=checkpoint.text, tensors=checkpoint.tensors)


def modules_of(tensors: Iterable[str]) -> set[str]:
    """Every module, at any depth, that the names of tensors tell of."""
    return {name[:end] for name in tensors for end, letter in enumerate(name) if letter == "."}
