"""What must hold before a layer is written; nothing is made up where it does not."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch  # type: ignore[import-not-found]

from sparkwright.errors import ConfigurationError


def check_calibrated(amax: Mapping[str, Any], quantizers: Iterable[str]) -> None:
    """Refuse a layer in which an enabled quantizer has no finite, positive range.

    Raises:
        ConfigurationError: names the quantizers.
    """
    wrong = [
        name
        for name in quantizers
        if name not in amax or not bool(torch.isfinite(amax[name]).all()) or not bool((amax[name] > 0).all())
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
            if not bool(torch.isfinite(value).all()) or not bool((value > 0).all()):
                raise ConfigurationError(f"{name} is not finite and positive", remedy="give other calibration data")
        if part == "weight_scale" and f"{module}.input_scale" not in tensors:
            raise ConfigurationError(f"{module} has no input_scale")
