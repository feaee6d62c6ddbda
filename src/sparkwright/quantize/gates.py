"""What must hold before a layer is written; nothing is made up where it does not."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch  # type: ignore[import-not-found]

from sparkwright.errors import ConfigurationError
from sparkwright.quantize.options import Uncalibrated


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
        module, _, part = name.rpartition(".")
        if part in ("input_scale", "weight_scale_2") or (part == "weight_scale" and tensor.numel() == 1):
            value = tensor.float()
            if not bool(torch.isfinite(value).all()) or not bool((value > 0).all()):
                raise ConfigurationError(f"{name} is not finite and positive", remedy="give other calibration data")
        if part == "weight_scale" and f"{module}.input_scale" not in tensors:
            raise ConfigurationError(f"{module} has no input_scale")
