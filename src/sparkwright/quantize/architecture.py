"""The model without its weights, by transformers: taken apart into decoder layers, one of them loaded at a time.

To load a layer, the whole model is put together around a list of layers that holds just that one, under its own name
and number, so that names, patterns and conversions are those of the whole model. What is around the layer gets
stand-ins of a few rows, as modelopt's export sends two tokens through the model to see which Linears share an input.

transformers loads only whole models in public; what it calls for that is called here with a part of the files, until it
takes a list of names. Its release is locked, and tests compare the result with that of a model that was loaded whole.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import torch  # type: ignore[import-not-found]
import transformers  # type: ignore[import-not-found]
from accelerate import init_empty_weights  # type: ignore[import-not-found]
from huggingface_hub.errors import StrictDataclassError  # type: ignore[import-not-found]
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.conversion_mapping import get_model_conversion_mapping  # type: ignore[import-not-found]
from transformers.core_model_loading import (  # type: ignore[import-not-found]
    WeightConverter,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig  # type: ignore[import-not-found]

from sparkwright.checkpoint.headers import Tensor
from sparkwright.checkpoint.modules import is_vision
from sparkwright.errors import ConfigurationError, InputUnreadableError, UnavailableError, UsageError
from sparkwright.quantize.source import Source

_STAND_IN_ROWS: Final = 2


class _Reached(Exception):  # noqa: N818 - not an error: it ends a forward pass where it has served its purpose
    """The forward pass came to the last layer that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """How the model calls a decoder layer, besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def resolve_device(name: str) -> str:
    """`auto` is the first CUDA device when there is one.

    Raises:
        UsageError: it is the name of no device.
        UnavailableError: there is no such CUDA device.
    """
    devices = torch.cuda.device_count()
    if name == "auto":
        return "cuda:0" if devices else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()) or (kind == "cpu" and number):
        raise UsageError(f"{name} is no device", remedy="write --device auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(number or 0) >= devices:
        raise UnavailableError(
            f"there is no device {name}: torch sees {devices} CUDA devices",
            remedy="give the container its GPU with --gpus all, or quantize with --device cpu, which takes much longer",
        )
    return name


@contextmanager
def _explain_failure(root: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, KeyError, ImportError, StrictDataclassError) as error:
        raise ConfigurationError(
            f"transformers {transformers.__version__} cannot make the model of {root}: {str(error).splitlines()[0]}",
            cause="it does not know the architecture, or not as a language model alone, or the model brings code of "
            "its own, which is never run",
        ) from error


class Architecture:
    """A model without weights, taken apart into its decoder layers and the rest."""

    def __init__(self, source: Source, device: str) -> None:
        self.source, self.device = source, device
        self.dtype = getattr(torch, source.dtype)
        with _explain_failure(source.root), init_empty_weights(include_buffers=False):
            self.config = AutoConfig.from_pretrained(source.root)
            kind = AutoModelForImageTextToText if source.has_vision else AutoModelForCausalLM
            self._shell = kind.from_config(self.config, dtype=self.dtype).eval()
        self._named = _names_in_memory(self._shell, source.tensors)
        self.prefix, layers = self._find_layers()
        self._layers = list(layers)
        self._calls: dict[int, list[Call]] = {}
        parent, _, self._attribute = self.prefix.rpartition(".")
        self._parent = parent
        setattr(self._shell.get_submodule(parent), self._attribute, torch.nn.ModuleList())
        _move_buffers(self._shell, device)
        self.tensors = self._tensors_of_layers()
        if absent := [number for number in range(len(self._layers)) if number not in self.tensors]:
            raise InputUnreadableError(
                f"{source.root} has no tensors for layer {absent[0]}",
                cause=f"transformers calls the layers {self.prefix}, the files do not",
            )

    def _find_layers(self) -> tuple[str, Any]:
        wanted = self.source.layers
        found = [
            (name, module)
            for name, module in self._shell.named_modules()
            if isinstance(module, torch.nn.ModuleList)
            and len(module) == wanted
            and not is_vision(name)
            and any(True for _ in module.parameters())
        ]
        if not found:
            raise ConfigurationError(
                f"{type(self._shell).__name__} has no list of {wanted} decoder layers",
                cause="the architecture is none that can be taken apart by layer",
            )
        return min(found, key=lambda one: one[0].count("."))

    def _tensors_of_layers(self) -> dict[int, dict[str, Tensor]]:
        """The tensors of each layer, by their names in the files."""
        found: dict[int, dict[str, Tensor]] = {}
        start = f"{self.prefix}."
        for stored, name in self._named.items():
            number, _, rest = name.removeprefix(start).partition(".")
            if name.startswith(start) and rest and number.isdecimal():
                found.setdefault(int(number), {})[stored] = self.source.tensors[stored]
        return found

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def attention(self) -> tuple[str, ...]:
        """Where the layers have their attention, by the suffix of the class's name as modelopt finds it too."""
        names = {
            name
            for layer in self._layers
            for name, module in layer.named_modules()
            if type(module).__name__.endswith("Attention")
        }
        return tuple(sorted(names))

    @property
    def class_name(self) -> str:
        """The name of the model's class."""
        return type(self._shell).__name__

    def rest(self) -> dict[str, Tensor]:
        """The tensors of the source around the layers, as they are to be copied.

        Raises:
            InputUnreadableError: one of them is missing.
        """
        wanted = self._shell.state_dict().keys() - self._tied
        if missing := sorted(wanted - set(self._named.values())):
            raise InputUnreadableError(
                f"{self.source.root} has no tensor {missing[0]}",
                cause=f"{self.class_name} needs it; {len(missing)} are missing",
            )
        return {stored: self.source.tensors[stored] for stored in sorted(self._named) if self._named[stored] in wanted}

    @property
    def _tied(self) -> set[str]:
        return set(getattr(self._shell, "all_tied_weights_keys", None) or ())

    def types_of(self, names: Iterable[str]) -> dict[str, Any]:
        """The type in which the model holds tensors around the layers."""
        state = self._shell.state_dict()
        return {stored: state[self._named[stored]].dtype for stored in names}

    def _not_loaded(self) -> set[str]:
        mine = {name for number in range(len(self)) for name in self.tensors[number]}
        tied = {stored for stored, name in self._named.items() if name in self._tied}
        return set(self.source.tensors) - mine - set(self.rest()) - tied

    @cached_property
    def prediction(self) -> dict[str, str]:
        """Tensors for multi-token prediction that transformers does not load, and the module of each."""
        found = {name: self.source.prediction_module(name) for name in sorted(self._not_loaded())}
        return {name: module for name, module in found.items() if module is not None}

    def left_out(self) -> list[str]:
        """Tensors of the source that neither the model has nor multi-token prediction."""
        return sorted(self._not_loaded() - self.prediction.keys())

    def _assemble(self, numbers: Iterable[int]) -> Any:  # noqa: ANN401
        # One memo: all parts share one copy of the settings, as in a whole model, where modelopt changes them to have
        # experts computed one by one.
        memo: dict[int, Any] = {}
        model = copy.deepcopy(self._shell, memo)
        holder = model.get_submodule(self.prefix)
        for number in numbers:
            holder.add_module(str(number), copy.deepcopy(self._layers[number], memo))
        return model

    def _recorder(self, layers: int) -> Callable[[Any], list[tuple[Any, Call]]]:
        """A function that sends embedded tokens through the first layers, which only note how they are called."""
        seen: list[tuple[Any, Call]] = []

        def note(number: int, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            hidden = args[0] if args else kwargs.pop("hidden_states")
            seen.append((hidden, Call(args=args[1:], kwargs=kwargs)))
            if number == layers - 1:
                raise _Reached
            return hidden

        model = self._assemble(range(layers))
        for number, layer in enumerate(model.get_submodule(self.prefix)):
            layer.forward = partial(note, number)

        def record(embedded: Any) -> list[tuple[Any, Call]]:  # noqa: ANN401
            seen.clear()
            try:
                with torch.no_grad(), suppress(_Reached):
                    model.get_submodule(self._parent)(inputs_embeds=embedded, use_cache=False)
            except RuntimeError as error:
                if "meta" not in str(error):
                    raise
                raise ConfigurationError(
                    f"{self.class_name} cannot be taken apart by layer: {error}",
                    cause="its layers get more than hidden states, made of weights around them",
                    remedy="quantize it with modelopt's own flow, or look for a published NVFP4 checkpoint",
                ) from error
            return list(seen)

        return record

    def call(self, number: int, length: int) -> Call:
        """How layer `number` is called for one sample of `length` tokens without padding."""
        if length not in self._calls:
            nothing = torch.zeros(1, length, self.source.hidden_size, dtype=self.dtype, device=self.device)
            self._calls[length] = [one for _, one in self._recorder(len(self))(nothing)]
        return self._calls[length][number]

    def first_inputs(self, samples: Iterable[Any]) -> Iterator[Any]:
        """What the first layer gets for each sample of token ids; only the rows that are used come off the disk."""
        embedding = copy.deepcopy(self._shell.get_input_embeddings())
        name = next(
            path for path, module in self._shell.named_modules() if module is self._shell.get_input_embeddings()
        )
        tensor = next(self.source.tensors[stored] for stored, at in self._named.items() if at == f"{name}.weight")
        record = self._recorder(1)
        with safe_open(tensor.path, framework="pt") as stream, torch.no_grad():
            weight = stream.get_tensor(tensor.name).to(self.dtype)
            embedding.weight = torch.nn.Parameter(weight, requires_grad=False)
            for ids in samples:
                embedded = embedding(ids.reshape(1, -1)).to(self.device)
                yield record(embedded)[0][0]

    def load(self, number: int) -> Any:  # noqa: ANN401
        """The model around one layer, which has its weights."""
        model = self._assemble([number])
        _blind(model)
        self._fill(model, number)
        self._stand_in(model)
        return model

    def whole(self) -> Any:  # noqa: ANN401
        """The model with all layers and without weights."""
        return self._assemble(range(len(self)))

    def around(self) -> Any:  # noqa: ANN401
        """The model without layers and weights."""
        return copy.deepcopy(self._shell)

    def _fill(self, model: Any, number: int) -> None:  # noqa: ANN401
        with _slices(self.tensors[number]) as slices:
            convert_and_load_state_dict_in_model(
                model,
                slices,
                LoadStateDictConfig(
                    dtype=self.dtype,
                    dtype_plan=model._get_dtype_plan(self.dtype),  # noqa: SLF001
                    device_map={"": torch.device(self.device)},
                    weight_mapping=get_model_conversion_mapping(model, None, None),
                ),
            )
        layer = model.get_submodule(f"{self.prefix}.{number}")
        _move_buffers(layer, self.device)
        if empty := sorted(name for name, tensor in layer.state_dict().items() if tensor.is_meta):
            raise InputUnreadableError(f"{self.source.root} has no tensor for {self.prefix}.{number}.{empty[0]}")

    def _stand_in(self, model: Any) -> None:  # noqa: ANN401
        hidden = self.source.hidden_size

        def empty(*shape: int) -> Any:  # noqa: ANN401
            return torch.nn.Parameter(torch.zeros(*shape, dtype=self.dtype, device=self.device), requires_grad=False)

        embedding = torch.nn.Embedding(_STAND_IN_ROWS, hidden, device="meta")
        embedding.weight = empty(_STAND_IN_ROWS, hidden)
        model.set_input_embeddings(embedding)
        head = model.get_output_embeddings()
        head.weight = empty(_STAND_IN_ROWS, head.weight.shape[1])
        if head.bias is not None:
            head.bias = empty(_STAND_IN_ROWS)
        head.out_features = _STAND_IN_ROWS
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.is_meta:
                    setattr(module, name, empty(*parameter.shape))


def _names_in_memory(model: Any, stored: Iterable[str]) -> dict[str, str]:  # noqa: ANN401
    """Under which name the model has each tensor of the files; several may become one."""
    mapping = get_model_conversion_mapping(model, None, None)
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    renamings = [one for one in mapping if not isinstance(one, WeightConverter)]
    state = model.state_dict()
    return {name: rename_source_key(name, renamings, converters, model.base_model_prefix, state)[0] for name in stored}


def _blind(model: Any) -> None:  # noqa: ANN401
    """Take away what sees or hears: text does not pass it, and it would take memory."""
    for name, _ in list(model.named_modules()):
        parent, _, last = name.rpartition(".")
        if is_vision(name) and not is_vision(parent):
            setattr(model.get_submodule(parent), last, torch.nn.Identity())


def _move_buffers(model: Any, device: str) -> None:  # noqa: ANN401
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not buffer.is_meta:
                module._buffers[name] = buffer.to(device)  # noqa: SLF001


@contextmanager
def _slices(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Any]]:
    """Handles of tensors that are read when they are needed."""
    with ExitStack() as stack:
        files: dict[Path, Any] = {}
        for tensor in tensors.values():
            if tensor.path not in files:
                files[tensor.path] = stack.enter_context(safe_open(tensor.path, framework="pt"))
        yield {name: files[tensor.path].get_slice(name) for name, tensor in tensors.items()}
