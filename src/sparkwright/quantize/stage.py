"""One decoder layer and what modelopt does with it: measure, pack, and say of the whole model what it did.

modelopt's own functions do all the arithmetic. Its public export writes the files of a whole model that is in memory or
offloaded, so what that is made of is called here for one layer at a time: the functions that begin with an underscore,
until modelopt has an export that gives tensors. Tests compare the result with that of the public export; its release is
locked.
"""

import copy
import fnmatch
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Final

import modelopt.torch.quantization as mtq  # type: ignore[import-not-found]
import torch  # type: ignore[import-not-found]
from modelopt.torch.export.quant_aware_conversion import (  # type: ignore[import-not-found]
    QuantConversionUnsupportedError,
    build_reverse_name_mapper,
    revert_quant_config_names,
    revert_weight_conversion_quant_aware,
)
from modelopt.torch.export.quant_utils import get_quant_config  # type: ignore[import-not-found]
from modelopt.torch.export.unified_export_hf import (  # type: ignore[import-not-found]
    _add_mtp_exclusions,
    _export_transformers_checkpoint,
    _sanitize_generation_config_for_save,
    _write_hf_export_config,
)
from modelopt.torch.quantization.nn import TensorQuantizer  # type: ignore[import-not-found]
from transformers import GenerationConfig  # type: ignore[import-not-found]
from transformers.conversion_mapping import get_model_conversion_mapping  # type: ignore[import-not-found]
from transformers.utils import logging  # type: ignore[import-not-found]

from sparkwright.errors import ConfigurationError, UsageError
from sparkwright.quantize.architecture import Architecture
from sparkwright.quantize.gates import check_calibrated, check_names, check_scales
from sparkwright.quantize.options import Attention, KvCache, Recipe
from sparkwright.quantize.source import modules_of

# modelopt looks whether a pattern took effect on the model that it is given: here that is one layer, and a dense layer
# of a mixture of experts rightly has none under --experts-only. `quant_config` asks that question of the whole model.
_SKIP_CHECK: Final = "MODELOPT_SKIP_WEIGHT_QUANT_CHECK"
_LINEAR: Final = ("*weight_quantizer", "*input_quantizer")


def settings(recipe: Recipe, attention: Iterable[str]) -> dict[str, Any]:
    """Modelopt's own preset with what the recipe changes, without an algorithm.

    Later entries win. `attention` are the paths of attention modules within a layer.
    """
    chosen = copy.deepcopy(mtq.NVFP4_EXPERTS_ONLY_CFG if recipe.experts_only else mtq.NVFP4_DEFAULT_CFG)
    entries = chosen["quant_cfg"]
    # modelopt's preset leaves out the convolutions of some state space layers by name. Those of others get quantizers,
    # which no export can make use of: they are written as they are, and not named as excluded.
    entries.append({"parent_class": "nn.Conv1d", "quantizer_name": "*", "enable": False})
    if recipe.attention is not None:
        for path in attention:
            entries += _of_attention(recipe.attention, path)
    if recipe.kv_cache is KvCache.FP8:
        entries += copy.deepcopy(mtq.FP8_KV_CFG["quant_cfg"])
    for pattern in recipe.exclude:
        entries += [{"quantizer_name": name, "enable": False} for name in _with_all_below(pattern)]
    return {**chosen, "algorithm": None}


def _with_all_below(pattern: str) -> list[str]:
    return [pattern] if pattern.endswith("*") else [pattern, f"{pattern}.*"]


def _of_attention(chosen: Attention, path: str) -> list[dict[str, Any]]:
    names = [f"*.{path}.{name}" for name in _LINEAR]
    if chosen is Attention.BF16:
        return [{"quantizer_name": name, "enable": False} for name in names]
    preset = mtq.FP8_DEFAULT_CFG if chosen is Attention.FP8 else mtq.NVFP4_DEFAULT_CFG
    own = {one["quantizer_name"]: one["cfg"] for one in preset["quant_cfg"] if one["quantizer_name"] in _LINEAR}
    return [{"quantizer_name": f"*.{path}.{name}", "cfg": copy.deepcopy(own[name])} for name in _LINEAR]


class Stage:
    """One decoder layer with its weights and modelopt's quantizers."""

    def __init__(self, architecture: Architecture, recipe: Recipe, number: int) -> None:
        self._architecture, self._recipe, self.number = architecture, recipe, number
        self._model = architecture.load(number)
        _insert(self._model, recipe, architecture)
        self._name = f"{architecture.prefix}.{number}"
        self._layer = self._model.get_submodule(self._name)

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

    def calibrate(self, forward_samples: Callable[[], None]) -> None:
        """Let modelopt watch the samples go through.

        Raises:
            ConfigurationError: there are values that are not finite.
        """
        try:
            mtq.calibrate(self._model, "max", forward_loop=lambda _: forward_samples())
        except AssertionError as error:  # how modelopt says that it saw NaN
            raise ConfigurationError(
                f"modelopt cannot measure {self._name}: {error}",
                cause="the weights or the hidden states hold values that are not finite",
                remedy=f"sparkwright checkpoint verify {self._architecture.source.root} looks for them",
            ) from error

    def export(self) -> dict[str, Any]:
        """The layer's tensors as modelopt's export gives them; the weights are spent after this.

        Raises:
            ConfigurationError: a quantizer was not calibrated.
        """
        seen = {name: one.amax for name, one in self._quantizers() if one.amax is not None}
        check_calibrated(seen, [name for name, _ in self._quantizers()])
        with torch.inference_mode():
            state, _ = _export_transformers_checkpoint(self._model, self._architecture.dtype)
            mine = {name: one for name, one in state.items() if name.startswith(f"{self._name}.")}
            state = _under_stored_names(self._model, mine)
        tensors = {name: one.detach().to("cpu").contiguous() for name, one in state.items()}
        check_scales(tensors)
        check_names(tensors, self._architecture.tensors[self.number])
        return tensors


def quant_config(architecture: Architecture, recipe: Recipe) -> dict[str, Any]:
    """What modelopt says of the whole model in hf_quant_config.json.

    Raises:
        ConfigurationError: the recipe leaves nothing to quantize.
        UsageError: a pattern of the recipe matches nothing.
    """
    model = architecture.whole()
    _insert(model, recipe, architecture)
    _check_patterns(recipe, [name for name, _ in model.named_modules()], architecture.prefix)
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
    # modelopt's export excludes the modules that this attribute names, for whoever copies their tensors.
    model._mtp_layer_prefixes = sorted(set(architecture.prediction.values()))  # noqa: SLF001
    _add_mtp_exclusions(model, config)
    # transformers notes this when it loads a whole model; modelopt turns names back by it.
    model._weight_conversions = get_model_conversion_mapping(model, None, None)  # noqa: SLF001
    try:
        mapper = build_reverse_name_mapper(model)
    except QuantConversionUnsupportedError:
        mapper = None  # as for the tensors, see _under_stored_names
    if mapper is not None:
        revert_quant_config_names(config.get("quantization", {}), _to_stored_names(mapper, architecture.source.tensors))
    return config


def _under_stored_names(model: Any, tensors: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """Turn names in memory back into those of the files.

    As in modelopt's export they stay where modelopt knows no way back; `check_names` says whether they may.
    """
    try:
        stored: dict[str, Any] = revert_weight_conversion_quant_aware(model, tensors)
    except QuantConversionUnsupportedError:
        return tensors
    return stored


def _to_stored_names(mapper: Callable[[str], str], tensors: Iterable[str]) -> Callable[[str], str]:
    """Keep a name that the files have: a text model shares the mapping of the one with vision, not its names."""
    stored = modules_of(tensors)
    return lambda name: name if name.rstrip(".*") in stored else mapper(name)


def _check_patterns(recipe: Recipe, modules: Sequence[str], prefix: str) -> None:
    for pattern in recipe.exclude:
        if not any(fnmatch.filter(modules, one) for one in _with_all_below(pattern)):
            # Of the last layer: the first ones of some mixtures are dense.
            last = [name for name in modules if name.startswith(f"{prefix}.") and "weight_quantizer" in name][-1]
            raise UsageError(
                f"--exclude {pattern} matches no module, so it would leave nothing out",
                cause="a pattern has to match the whole name, and transformers may hold the experts of a layer as one",
                remedy=f"names are like {last.rpartition('.')[0]}; '*.self_attn' leaves out attention in all layers",
            )


def write_settings(architecture: Architecture, recipe: Recipe, folder: Path) -> None:
    """config.json, hf_quant_config.json and generation_config.json, as modelopt's export writes them."""
    model = architecture.around()
    if (architecture.source.root / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(architecture.source.root)
    _sanitize_generation_config_for_save(model)
    model.config.architectures = [architecture.class_name]
    model.config.dtype = architecture.dtype
    model.config.save_pretrained(folder)
    if model.generation_config is not None and model.can_generate():
        model.generation_config.save_pretrained(folder)
    _write_hf_export_config(model, quant_config(architecture, recipe), folder)


def _insert(model: Any, recipe: Recipe, architecture: Architecture) -> None:  # noqa: ANN401
    os.environ[_SKIP_CHECK] = "1"
    mtq.quantize(model, settings(recipe, architecture.attention))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what modelopt and transformers print out of the results and the progress of this program."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, warnings.catch_warnings(), redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        yield
