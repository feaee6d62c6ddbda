"""All that touches transformers and modelopt: build, load, calibrate and export one decoder layer.

The model is built without weights. For each layer a stage is made: the whole model around a list of layers that holds
just that one, under its own name and number, so that names, patterns and conversions are those of the whole model. What
is around the layer gets stand-ins of a few rows, as modelopt's export sends two tokens through the model to see which
Linears share an input. modelopt's own functions then do all the arithmetic.
"""

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import modelopt.torch.quantization as mtq  # type: ignore[import-not-found]
import torch  # type: ignore[import-not-found]
from accelerate import init_empty_weights  # type: ignore[import-not-found]
from modelopt.torch.export.quant_aware_conversion import (  # type: ignore[import-not-found]
    build_reverse_name_mapper,
    revert_quant_config_names,
    revert_weight_conversion_quant_aware,
)
from modelopt.torch.export.quant_utils import get_quant_config  # type: ignore[import-not-found]
from modelopt.torch.export.unified_export_hf import (  # type: ignore[import-not-found]
    _export_transformers_checkpoint,
    _sanitize_generation_config_for_save,
    _write_hf_export_config,
)
from modelopt.torch.quantization.nn import TensorQuantizer  # type: ignore[import-not-found]
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig  # type: ignore[import-not-found]
from transformers.conversion_mapping import get_model_conversion_mapping  # type: ignore[import-not-found]
from transformers.core_model_loading import (  # type: ignore[import-not-found]
    convert_and_load_state_dict_in_model,
)
from transformers.modeling_utils import LoadStateDictConfig  # type: ignore[import-not-found]
from transformers.utils import logging  # type: ignore[import-not-found]

from sparkwright.checkpoint.headers import Tensor
from sparkwright.errors import ConfigurationError, InputUnreadableError
from sparkwright.quantize.options import KvCache, Recipe, Uncalibrated
from sparkwright.quantize.source import Source

# modelopt looks whether a pattern took effect on the model that it is given: here that is one layer, and a dense layer
# of a mixture of experts rightly has none under --experts-only. `quant_config` asks that question of the whole model.
_SKIP_CHECK: Final = "MODELOPT_SKIP_WEIGHT_QUANT_CHECK"
_STAND_IN_ROWS: Final = 2


class _Reached(Exception):  # noqa: N818 - not an error: it ends a forward pass where it has served its purpose
    """The forward pass came to the last layer that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """How the model calls a decoder layer, besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def resolve_device(name: str) -> str:
    """`auto` is the first CUDA device when there is one."""
    if name != "auto":
        return name
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def settings(recipe: Recipe) -> dict[str, Any]:
    """Modelopt's own preset with what the recipe changes, without an algorithm."""
    chosen = copy.deepcopy(mtq.NVFP4_EXPERTS_ONLY_CFG if recipe.experts_only else mtq.NVFP4_DEFAULT_CFG)
    entries = chosen["quant_cfg"]
    if recipe.kv_cache is KvCache.FP8:
        entries += copy.deepcopy(mtq.FP8_KV_CFG["quant_cfg"])
    for pattern in recipe.exclude:
        names = {pattern, f"{pattern}.*"} if not pattern.endswith("*") else {pattern}
        entries += [{"quantizer_name": name, "enable": False} for name in sorted(names)]
    return {**chosen, "algorithm": None}


class Architecture:
    """A model without weights, taken apart into its decoder layers and the rest."""

    def __init__(self, source: Source, device: str) -> None:
        self.source, self.device = source, device
        self.dtype = getattr(torch, source.dtype)
        self.config = AutoConfig.from_pretrained(source.root)
        with init_empty_weights(include_buffers=False):
            self._shell = AutoModelForCausalLM.from_config(self.config, dtype=self.dtype).eval()
        self.prefix, layers = self._find_layers()
        self._layers = list(layers)
        self._calls: dict[int, list[Call]] = {}
        parent, _, self._attribute = self.prefix.rpartition(".")
        self._parent = parent
        setattr(self._shell.get_submodule(parent), self._attribute, torch.nn.ModuleList())
        _move_buffers(self._shell, device)
        self.tensors = source.of_layers(self.prefix)
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
            and any(True for _ in module.parameters())
        ]
        if not found:
            raise ConfigurationError(
                f"{type(self._shell).__name__} has no list of {wanted} decoder layers",
                cause="the architecture is none that can be taken apart by layer",
            )
        return min(found, key=lambda one: one[0].count("."))

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def class_name(self) -> str:
        """The name of the model's class."""
        return type(self._shell).__name__

    def rest(self) -> dict[str, Tensor]:
        """The tensors of the source around the layers, as they are to be copied.

        Raises:
            InputUnreadableError: one of them is missing.
        """
        tied = set(getattr(self._shell, "all_tied_weights_keys", None) or ())
        wanted = {name for name in self._shell.state_dict() if name not in tied}
        if missing := sorted(wanted - set(self.source.tensors)):
            raise InputUnreadableError(
                f"{self.source.root} has no tensor {missing[0]}",
                cause=f"{self.class_name} needs it; {len(missing)} are missing",
            )
        return {name: self.source.tensors[name] for name in sorted(wanted)}

    def types_of(self, names: Iterable[str]) -> dict[str, Any]:
        """The type in which the model holds tensors around the layers."""
        state = self._shell.state_dict()
        return {name: state[name].dtype for name in names}

    def left_out(self) -> list[str]:
        """Tensors of the source that the model does not have, such as those of layers for multi-token prediction."""
        tied = set(getattr(self._shell, "all_tied_weights_keys", None) or ())
        mine = {name for number in range(len(self)) for name in self.tensors[number]}
        return sorted(set(self.source.tensors) - mine - set(self.rest()) - tied)

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
            with torch.no_grad(), suppress(_Reached):
                model.get_submodule(self._parent)(inputs_embeds=embedded, use_cache=False)
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
        tensor = self.source.tensors[f"{name}.weight"]
        record = self._recorder(1)
        with safe_open(tensor.path, framework="pt") as stream, torch.no_grad():
            weight = stream.get_tensor(tensor.name).to(self.dtype)
            embedding.weight = torch.nn.Parameter(weight, requires_grad=False)
            for ids in samples:
                embedded = embedding(ids.reshape(1, -1)).to(self.device)
                yield record(embedded)[0][0]

    def stage(self, number: int, recipe: Recipe) -> "Stage":
        """Load a layer and put modelopt's quantizers into it."""
        model = self._assemble([number])
        self._load(model, number)
        self._stand_in(model)
        _insert(model, recipe)
        return Stage(self, model, number)

    def _load(self, model: Any, number: int) -> None:  # noqa: ANN401
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
                tp_plan=None,
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
        head.out_features = _STAND_IN_ROWS
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.is_meta:
                    setattr(module, name, empty(*parameter.shape))

    def quant_config(self, recipe: Recipe) -> dict[str, Any]:
        """What modelopt says of the whole model in hf_quant_config.json.

        Raises:
            ConfigurationError: the recipe leaves nothing to quantize.
        """
        model = self._assemble(range(len(self)))
        _insert(model, recipe)
        if not any(
            "weight_quantizer" in name and module.is_enabled
            for name, module in model.named_modules()
            if isinstance(module, TensorQuantizer)
        ):
            raise ConfigurationError(
                "the recipe leaves no Linear to quantize",
                cause="--exclude matches all, or --experts-only was given for a model without experts",
            )
        config: dict[str, Any] = get_quant_config(model)
        model._weight_conversions = get_model_conversion_mapping(model, None, None)  # noqa: SLF001
        mapper = build_reverse_name_mapper(model)
        if mapper is not None:
            revert_quant_config_names(config.get("quantization", {}), mapper)
        return config

    def write_settings(self, recipe: Recipe, folder: Path) -> None:
        """config.json, hf_quant_config.json and generation_config.json, as modelopt's export writes them."""
        model = copy.deepcopy(self._shell)
        if (self.source.root / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(self.source.root)
        _sanitize_generation_config_for_save(model)
        model.config.architectures = [self.class_name]
        model.config.dtype = self.dtype
        model.config.save_pretrained(folder)
        if model.generation_config is not None and model.can_generate():
            model.generation_config.save_pretrained(folder)
        _write_hf_export_config(model, self.quant_config(recipe), folder)


class Stage:
    """One decoder layer with its weights and quantizers."""

    def __init__(self, architecture: Architecture, model: Any, number: int) -> None:  # noqa: ANN401
        self._architecture, self._model, self.number = architecture, model, number
        self._name = f"{architecture.prefix}.{number}"
        self._layer = model.get_submodule(self._name)

    def _quantizers(self) -> Iterator[tuple[str, Any]]:
        for name, module in self._layer.named_modules():
            if isinstance(module, TensorQuantizer) and module.is_enabled:
                yield f"{self._name}.{name}", module

    def forward(self, hidden: Any) -> Any:  # noqa: ANN401
        """Send one sample through the layer."""
        call = self._architecture.call(self.number, hidden.shape[1])
        with torch.no_grad():
            result = self._layer(hidden.to(self._architecture.device), *call.args, **call.kwargs)
        return result[0] if isinstance(result, tuple) else result

    def calibrate(self, forward_samples: Callable[[], None]) -> dict[str, Any]:
        """Let modelopt watch the samples go through; the amax of every quantizer that saw something, by its name."""
        try:
            mtq.calibrate(self._model, "max", forward_loop=lambda _: forward_samples())
        except AssertionError as error:  # how modelopt says that it saw NaN
            raise ConfigurationError(
                f"modelopt cannot measure {self._name}: {error}",
                cause="the weights or the hidden states hold values that are not finite",
                remedy=f"sparkwright checkpoint verify {self._architecture.source.root} looks for them",
            ) from error
        return {name: one.amax.detach().to("cpu") for name, one in self._quantizers() if one.amax is not None}

    def export(self, amax: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
        """The layer's tensors as modelopt's export gives them; the weights are spent after this.

        Raises:
            ConfigurationError: a quantizer was not calibrated.
        """
        for name, quantizer in self._quantizers():
            quantizer.reset_amax()
            if name in amax:
                quantizer.amax = amax[name].to(self._architecture.device)
        check_calibrated(amax, [name for name, _ in self._quantizers()], recipe.uncalibrated_experts)
        with torch.inference_mode():
            state, _ = _export_transformers_checkpoint(self._model, self._architecture.dtype)
            state = revert_weight_conversion_quant_aware(self._model, state)
        start = f"{self._name}."
        tensors = {name: one.detach().to("cpu").contiguous() for name, one in state.items() if name.startswith(start)}
        check_scales(tensors)
        return tensors


def check_calibrated(amax: Mapping[str, Any], quantizers: Iterable[str], policy: Uncalibrated) -> None:
    """Refuse a layer in which an enabled quantizer has no finite, positive amax.

    Raises:
        ConfigurationError: names the quantizers.
    """
    wrong, unseen = [], []
    for name in quantizers:
        if name in amax:
            value = amax[name]
            if not bool(torch.isfinite(value).all()) or not bool((value > 0).all()):
                wrong.append(name)
        elif ".experts." in name and "input_quantizer" in name:
            unseen.append(name)
        else:
            wrong.append(name)
    if wrong:
        raise ConfigurationError(
            f"{len(wrong)} quantizers have no finite, positive range: {', '.join(wrong[:3])}",
            cause="the weights or the hidden states hold zeros only, or values that are not finite",
            remedy="leave the modules out with --exclude, or give other calibration data",
        )
    if unseen and policy is Uncalibrated.REFUSE:
        raise ConfigurationError(
            f"{len(unseen)} experts' inputs saw no token: {', '.join(unseen[:3])}",
            cause="the calibration data does not reach every expert",
            remedy="give more or other calibration data, or --uncalibrated-experts share-layer-max",
        )


def check_scales(tensors: Mapping[str, Any]) -> None:
    """Refuse a layer whose exported scales would not serve.

    Raises:
        ConfigurationError: a packed weight lacks a scale, or one is not finite and positive.
    """
    for name, tensor in tensors.items():
        if name.endswith((".input_scale", ".weight_scale_2")):
            value = tensor.float()
            if not bool(torch.isfinite(value).all()) or not bool((value > 0).all()):
                raise ConfigurationError(f"{name} is not finite and positive", remedy="give other calibration data")
        if name.endswith(".weight_scale_2") and f"{name.removesuffix('weight_scale_2')}input_scale" not in tensors:
            raise ConfigurationError(f"{name.removesuffix('.weight_scale_2')} has no input_scale")


def _insert(model: Any, recipe: Recipe) -> None:  # noqa: ANN401
    os.environ[_SKIP_CHECK] = "1"
    mtq.quantize(model, settings(recipe))


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


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what modelopt and transformers print out of the results and the progress of this program."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, warnings.catch_warnings(), redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        yield
