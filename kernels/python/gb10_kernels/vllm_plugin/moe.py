"""NVFP4 mixture-of-experts layers: vLLM's own quantization methods, with another way for one to eight tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig
from vllm.model_executor.layers.fused_moe.modular_kernel import FusedMoEKernel
from vllm.model_executor.layers.fused_moe.oracle.nvfp4 import NvFp4MoeBackend
from vllm.model_executor.layers.fused_moe.prepare_finalize.no_dp_ep import MoEPrepareAndFinalizeNoDPEPModular
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe.compressed_tensors_moe_w4a4_nvfp4 import (  # noqa: E501
    CompressedTensorsW4A4Nvfp4MoEMethod,
)
from vllm.model_executor.layers.quantization.modelopt import ModelOptNvFp4Config, ModelOptNvFp4FusedMoE
from vllm.model_executor.utils import is_weights_pre_processed

from gb10_kernels import ops
from gb10_kernels.vllm_plugin.fallback import tell
from gb10_kernels.vllm_plugin.linear import tell_if_never_asked


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one of vLLM's backends keeps the experts' weights: packed as they came, but for this."""

    tiled_scales: bool
    up_first: bool


LAYOUTS = {
    "VLLM_CUTLASS": Layout(tiled_scales=True, up_first=False),
    "FLASHINFER_CUTLASS": Layout(tiled_scales=True, up_first=True),
    "EMULATION": Layout(tiled_scales=False, up_first=False),
}
"""The backends whose weights the kernel can read."""


@dataclass(frozen=True, kw_only=True)
class Experts:
    """What the kernel needs of a layer beside its weights."""

    layout: Layout
    g13: Tensor
    g2: Tensor
    workspace: Tensor

    def __call__(self, layer: torch.nn.Module, x: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
        """The routed experts' sum."""
        return ops.moe_decode(
            x.contiguous(),
            layer.w13_weight,
            layer.w13_weight_scale,
            self.g13,
            layer.w2_weight,
            layer.w2_weight_scale,
            self.g2,
            topk_weights.to(torch.float32).contiguous(),
            topk_ids.contiguous() if topk_ids.dtype in {torch.int32, torch.int64} else topk_ids.to(torch.int64),
            expert_map=layer.expert_map,
            tiled_scales=self.layout.tiled_scales,
            up_first=self.layout.up_first,
            weight_on_input=layer.apply_router_weight_on_input,
            workspace=self.workspace,
        )


class _Decode:
    """Goes before one of vLLM's NVFP4 methods for experts: small batches to the kernel, all others as before."""

    moe: FusedMoEConfig
    moe_kernel: FusedMoEKernel | None
    nvfp4_backend: NvFp4MoeBackend
    is_monolithic: bool
    experts: Experts | None = None

    def _global_scales(self, layer: torch.nn.Module) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _unreadable(self, layer: torch.nn.Module) -> str | None:
        """Why the kernel cannot take this layer, or None."""
        moe, backend = self.moe, self.nvfp4_backend.value
        w13, w2 = layer.w13_weight, layer.w2_weight
        inner, hidden = moe.intermediate_size_per_partition, moe.hidden_dim
        clamps = [
            name for name in ("swiglu_limit", "swiglu_alpha", "swiglu_beta") if getattr(layer, name, None) is not None
        ]
        reasons = {
            f"the {backend} backend keeps the weights in a layout of its own": backend not in LAYOUTS,
            "it routes inside of the kernel": self.is_monolithic,
            # Then the global scales are no longer the checkpoint's.
            "another process has laid out its weights": is_weights_pre_processed(),
            f"its activation is {layer.activation}, not silu": layer.activation != MoEActivation.SILU,
            f"it has {', '.join(clamps)}": bool(clamps),
            "it has biases": moe.has_bias,
            "it has LoRA adapters": moe.is_lora_enabled,
            "its experts move while it serves (EPLB)": moe.moe_parallel_config.enable_eplb,
            "its tokens travel between ranks": self.moe_kernel is None
            or not isinstance(self.moe_kernel.prepare_finalize, MoEPrepareAndFinalizeNoDPEPModular),
            f"it computes in {moe.in_dtype}": moe.in_dtype not in {torch.bfloat16, torch.float16},
            f"its weights are {list(w13.shape)} and {list(w2.shape)}": w13.shape[1:] != (2 * inner, hidden // 2)
            or w2.shape[1:] != (hidden, inner // 2)
            or hidden % ops.BLOCK != 0
            or inner % ops.BLOCK != 0,
            f"its scales are {layer.w13_weight_scale.dtype}": layer.w13_weight_scale.dtype != torch.float8_e4m3fn,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Let vLLM lay out the weights, then see whether the kernel can read them."""
        # Copies, and before: some backends multiply the scales of the activations into these.
        g13, g2 = (scales.to(torch.float32).clone() for scales in self._global_scales(layer))
        super().process_weights_after_loading(layer)
        reason = self._unreadable(layer)
        if reason is None:
            self.experts = Experts(
                layout=LAYOUTS[self.nvfp4_backend.value],
                g13=g13.contiguous(),
                g2=g2.contiguous(),
                workspace=ops.moe_workspace(
                    ops.MOST_TOKENS, self.moe.experts_per_token, self.moe.intermediate_size_per_partition, g2.device
                ),
            )
        tell(getattr(layer, "layer_name", type(layer).__name__), reason)

    def apply(
        self, layer: torch.nn.Module, x: Tensor, topk_weights: Tensor, topk_ids: Tensor, *rest: object, **named: object
    ) -> object:
        """The kernel or vLLM, as the number of tokens asks. vLLM's runner has seen to the shared experts."""
        if self.experts is not None and 0 < x.shape[0] <= ops.MOST_TOKENS:
            return self.experts(layer, x, topk_weights, topk_ids)
        return super().apply(layer, x, topk_weights, topk_ids, *rest, **named)


class DecodeModelOptNvFp4FusedMoE(_Decode, ModelOptNvFp4FusedMoE):
    """modelopt's: the global scales multiply."""

    def _global_scales(self, layer: torch.nn.Module) -> tuple[Tensor, Tensor]:
        return layer.w13_weight_scale_2, layer.w2_weight_scale_2


class DecodeCompressedTensorsNvfp4MoEMethod(_Decode, CompressedTensorsW4A4Nvfp4MoEMethod):
    """compressed-tensors': the global scales divide."""

    def _global_scales(self, layer: torch.nn.Module) -> tuple[Tensor, Tensor]:
        return 1.0 / layer.w13_weight_global_scale, 1.0 / layer.w2_weight_global_scale


class DecodeModelOptNvFp4Config(ModelOptNvFp4Config):
    """vLLM's configuration of this name, with the experts' method from here."""

    FusedMoEMethodCls = DecodeModelOptNvFp4FusedMoE

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> object:
        """Take vLLM's choice."""
        if isinstance(layer, LinearBase):
            tell_if_never_asked()
        return super().get_quant_method(layer, prefix)


class DecodeCompressedTensorsConfig(CompressedTensorsConfig):
    """vLLM's configuration of this name, with the experts' method from here."""

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> object:
        """Take vLLM's choice, and exchange its method for NVFP4 experts."""
        if isinstance(layer, LinearBase):
            tell_if_never_asked()
        method = super().get_quant_method(layer, prefix)
        if type(method) is CompressedTensorsW4A4Nvfp4MoEMethod:
            return DecodeCompressedTensorsNvfp4MoEMethod(method.moe, prefix, use_a16=method.use_a16)
        return method


def offer() -> None:
    """Register the configurations under the names of vLLM's, which vLLM lets a plugin do."""
    register_quantization_config("modelopt_fp4")(DecodeModelOptNvFp4Config)
    register_quantization_config("compressed-tensors")(DecodeCompressedTensorsConfig)
