"""NVFP4 linear layers: a kernel in vLLM's registry that wraps the one that vLLM would have chosen."""

import functools
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor
from vllm.model_executor.kernels import linear as registry
from vllm.model_executor.kernels.linear import NvFp4LinearKernel, NvFp4LinearLayerConfig
from vllm.model_executor.layers.quantization.compressed_tensors.transform.schemes.linear_qutlass_nvfp4 import (
    QutlassNvFP4LinearMethod,
)
from vllm.platforms import current_platform

from gb10_kernels import ops
from gb10_kernels.vllm_plugin.fallback import tell

TILED: dict[str, bool] = {
    "EmulationNvFp4LinearKernel": False,
    "CutlassNvFp4LinearKernel": True,
    "FlashInferCutlassNvFp4LinearKernel": True,
    "FlashInferCudnnNvFp4LinearKernel": True,
    "FlashInferB12xNvFp4LinearKernel": True,
    "TorchNvFp4LinearKernel": True,
}
"""vLLM's kernels that leave the packed weights as they are, and whether they put the scales into tiles."""

_wrapped: dict[str, NvFp4LinearKernel] = {}


class Gb10NvFp4LinearKernel(NvFp4LinearKernel):
    """A GEMV for one to eight tokens; vLLM's own choice for more, and for layers that it lays out in another way."""

    _choosing: ClassVar[bool] = False

    def __init__(self, config: NvFp4LinearLayerConfig) -> None:
        super().__init__(config)
        # vLLM is asked once more, while this kernel is out of the question.
        Gb10NvFp4LinearKernel._choosing = True
        try:
            self.inner = registry.init_nvfp4_linear_kernel()
        finally:
            Gb10NvFp4LinearKernel._choosing = False
        self.name = type(self.inner).__name__
        _wrapped[self.name] = self.inner
        self.reads = False

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        """Not while the kernel to wrap is being chosen, and not before compute capability 8.0."""
        if cls._choosing:
            return False, "it wraps the kernel that is being chosen"
        capability = current_platform.get_device_capability()
        number = compute_capability or (capability.to_int() if capability else None)
        if current_platform.is_cuda() and (number or 0) < 80:
            return False, "it needs compute capability 8.0"
        return True, None

    @classmethod
    def can_implement(cls, config: NvFp4LinearLayerConfig) -> tuple[bool, str | None]:
        """Every layer: what it cannot read is the wrapped kernel's."""
        del config
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Lay out the weights as the wrapped kernel does, and see whether the GEMV can read them."""
        self.inner.process_weights_after_loading(layer)
        reason = self._unreadable(layer)
        self.reads = reason is None
        scheme = getattr(layer, "scheme", None)
        if not self.reads and getattr(scheme, "kernel", None) is self:
            # Some of vLLM's methods look for the kernel's class in their own tables.
            scheme.kernel = self.inner
        tell(getattr(layer, "prefix", type(layer).__name__), reason)

    def _unreadable(self, layer: torch.nn.Module) -> str | None:
        if isinstance(getattr(layer, "quant_method", None), QutlassNvFP4LinearMethod):
            return "it has a Hadamard transform, and QutlassNvFP4LinearMethod multiplies by itself"
        if self.name not in TILED:
            return f"{self.name} keeps the weights in a layout of its own"
        weight, scales = layer.weight, layer.weight_scale
        width, rows = layer.input_size_per_partition, layer.output_size_per_partition
        if width % ops.BLOCK:
            return f"its width {width} is no multiple of {ops.BLOCK}"
        if weight.dtype != torch.uint8 or weight.dim() != 2 or scales.dtype != torch.float8_e4m3fn or scales.dim() != 2:
            return f"its weight is {weight.dtype} {list(weight.shape)} with scales {scales.dtype} {list(scales.shape)}"
        if weight.shape[0] < rows or weight.shape[1] * 2 < width or weight.shape[1] % 8 or not weight.is_contiguous():
            return f"its weight is {list(weight.shape)} for {rows} rows of {width}"
        return None

    def apply_weights(self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The GEMV or the wrapped kernel, as the number of tokens at run time asks."""
        if not self.reads:
            return self.inner.apply_weights(layer, x, bias)
        out = nvfp4_linear(
            x,
            layer.weight,
            layer.weight_scale,
            layer.weight_global_scale,
            getattr(layer, "alpha", None),
            getattr(layer, "input_global_scale_inv", None),
            layer.output_size_per_partition,
            self.name,
        )
        return out if bias is None else out + bias


# One operator, because the choice must be made when it runs: torch.compile would make it once, for every batch. It is
# given tensors and no layer's name, so that equal layers compile to equal graphs.
@torch.library.custom_op("gb10_kernels::vllm_nvfp4_linear", mutates_args=())
def nvfp4_linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    global_scale: Tensor,
    alpha: Tensor | None,
    input_scale_inverse: Tensor | None,
    rows: int,
    wrapped: str,
) -> Tensor:
    """X [..., width] times the transposed weight, [..., rows]."""
    width = x.shape[-1]
    tokens = x.numel() // width
    if 0 < tokens <= ops.MOST_TOKENS and x.dtype in {torch.bfloat16, torch.float16}:
        flat = x.reshape(tokens, width).contiguous()
        y = ops.gemv(flat, weight, scales, global_scale.reshape(()), rows=rows, tiled_scales=TILED[wrapped])
        return y.reshape(*x.shape[:-1], rows)
    layer = SimpleNamespace(
        weight=weight,
        weight_scale=scales,
        weight_global_scale=global_scale,
        alpha=alpha,
        input_global_scale_inv=input_scale_inverse,
        input_size_per_partition=width,
        output_size_per_partition=rows,
        weights_padding_cols=weight.shape[1] - width // 2,
    )
    return _wrapped[wrapped].apply_weights(layer, x)


@nvfp4_linear.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    global_scale: Tensor,
    alpha: object,
    inverse: object,
    rows: int,
    *_: object,
) -> Tensor:
    del weight, scales, global_scale, alpha, inverse
    return x.new_empty(*x.shape[:-1], rows)


@functools.cache
def tell_if_never_asked() -> None:
    """Say it once where vLLM chooses without asking the kernel: nothing else would, as no layer comes to it."""
    try:
        chosen = registry.init_nvfp4_linear_kernel()
    except ValueError:
        return  # vLLM raises it again at the first layer that needs one
    if not isinstance(chosen, Gb10NvFp4LinearKernel):
        reason = f"--linear-backend or VLLM_DISABLED_KERNELS chooses {type(chosen).__name__} without it"
        tell("every NVFP4 linear layer", reason)


def offer() -> None:
    """Put the kernel into vLLM's registry, before the others.

    The registry's function appends. The last of vLLM's kernels takes every layer, so none behind it is ever asked;
    hence the one move in the list.
    """
    platform = current_platform._enum  # noqa: SLF001 (the registry's keys; there is no public name for it)
    registry.register_linear_kernel(Gb10NvFp4LinearKernel, platform, "nvfp4")
    kernels = registry._POSSIBLE_NVFP4_KERNELS[platform]  # noqa: SLF001 (see above)
    kernels.insert(0, kernels.pop())
