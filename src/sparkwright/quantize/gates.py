"""What must hold before a layer is written; nothing is made up where it does not."""

from collections.abc import Iterable, Mapping
from typing import Any

from sparkwright.errors import ConfigurationError
from sparkwright.quantize.source import modules_of


def check_calibrated(amax: Mapping[str, Any], quantizers: Iterable[str]) -> None:
    """Refuse a layer in which an enabled quantizer has no finite, positive range.

    Raises:
        ConfigurationError: names the quantizers.
    """
    wrong = [
        name
        for name in quantizers
        if name not in amax or not bool(amax[name].isfinite().all()) or not bool((amax[name] > 0).all())
    ]
    if wrong:
        raise ConfigurationError(
            f"{len(wrong)} quantizers have no finite, positive range: {', '.join(wrong[:3])}",
            cause="the weights or the hidden states hold zeros only, or values that are not finite",
            remedy="leave the modules out with --exclude, or give other calibration data",
        )


def check_scales(tensors: Mapping[str, Any]) -> None:
    """Refuse a layer whose exported scales would not serve.

    Raises:
        ConfigurationError: a packed weight lacks a scale, or one is not finite and positive.
    """
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if part in ("input_scale", "weight_scale_2") or (part == "weight_scale" and tensor.numel() == 1):
            value = tensor.float()
            if not bool(value.isfinite().all()) or not bool((value > 0).all()):
                raise ConfigurationError(f"{name} is not finite and positive", remedy="give other calibration data")
        if part == "weight_scale" and f"{module}.input_scale" not in tensors:
            raise ConfigurationError(f"{module} has no input_scale")


def check_names(made: Iterable[str], stored: Iterable[str]) -> None:
    """Refuse a layer whose exported names are not those of the files: vLLM knows only these.

    Raises:
        ConfigurationError: a module is not in the files, nor the mixture whose expert it is part of.
    """
    known = modules_of(stored)
    for name in made:
        module = name.rpartition(".")[0]
        # Files may stack experts under a name of their own; vLLM knows each by its number too.
        if module not in known and module.partition(".experts.")[0] not in known:
            raise ConfigurationError(
                f"{name} has another name in the files of the model",
                cause="transformers holds the model under names of its own, and modelopt knows no way back",
                remedy="look for a published NVFP4 checkpoint; modelopt's own export has the same name",
            )
