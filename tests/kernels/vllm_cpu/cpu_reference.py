"""A plugin of vLLM for these tests: makes it serve NVFP4 models on a CPU, where it has no kernels of its own for them.

W4A4=1 takes vLLM's emulation, which quantizes the activations too; 0 leaves them alone, as the kernels under test do.
"""

import os

import torch  # type: ignore[import-not-found]
import vllm.model_executor.layers.fused_moe.modular_kernel as mk  # type: ignore[import-not-found]
from torch import Tensor
from vllm.model_executor.kernels import linear  # type: ignore[import-not-found]
from vllm.model_executor.layers.fused_moe.activation import MoEActivation  # type: ignore[import-not-found]
from vllm.model_executor.layers.fused_moe.oracle.nvfp4 import NvFp4MoeBackend  # type: ignore[import-not-found]
from vllm.model_executor.layers.fused_moe.topk_weight_and_reduce import (  # type: ignore[import-not-found]
    TopKWeightAndReduceNoOP,
)
from vllm.model_executor.layers.quantization import modelopt  # type: ignore[import-not-found]
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (  # type: ignore[import-not-found]
    compressed_tensors_moe_w4a4_nvfp4,
)
from vllm.model_executor.layers.quantization.utils.nvfp4_emulation_utils import (  # type: ignore[import-not-found]
    dequantize_to_dtype,
    ref_nvfp4_quant_dequant,
)
from vllm.platforms import PlatformEnum  # type: ignore[import-not-found]


def _activations(x: Tensor, scale: Tensor) -> Tensor:
    return ref_nvfp4_quant_dequant(x, scale, 16) if os.environ["W4A4"] == "1" else x


class DequantizedLinearKernel(linear.EmulationNvFp4LinearKernel):  # type: ignore[misc]
    """vLLM's emulation without the quantization of the activations."""

    def apply_weights(self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Dequantize and multiply."""
        weight = dequantize_to_dtype(
            layer.weight, layer.weight_scale, layer.weight_global_scale, x.dtype, 16, swizzle=False
        )
        return torch.nn.functional.linear(x, weight, bias)


class EmulatedExperts(mk.FusedMoEExpertsModular):  # type: ignore[misc]
    """What vLLM's emulation of NVFP4 experts computes; that is written in Triton, which has no CPU."""

    @staticmethod
    def activation_format() -> mk.FusedMoEActivationFormat:
        """Tokens as they come."""
        return mk.FusedMoEActivationFormat.Standard

    @property
    def expects_unquantized_inputs(self) -> bool:
        """They are quantized here."""
        return True

    @staticmethod
    def _supports_current_device() -> bool:
        return True

    @staticmethod
    def _supports_no_act_and_mul() -> bool:
        return False

    @staticmethod
    def _supports_quant_scheme(*_: object) -> bool:
        return True

    @staticmethod
    def _supports_activation(*_: object) -> bool:
        return True

    @staticmethod
    def _supports_parallel_config(*_: object) -> bool:
        return True

    def workspace_shapes(self, tokens: int, _: int, hidden: int, *__: object) -> tuple[tuple[int, ...], ...]:
        """None but the output."""
        return (0,), (0,), (tokens, hidden)

    def finalize_weight_and_reduce_impl(self) -> mk.TopKWeightAndReduce:
        """Nothing is left to do."""
        return TopKWeightAndReduceNoOP()

    def apply(
        self,
        output: Tensor,
        hidden_states: Tensor,
        w1: Tensor,
        w2: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        activation: MoEActivation,
        *_: object,
        **__: object,
    ) -> None:
        """Dequantize and multiply, one expert after another."""
        assert activation == MoEActivation.SILU
        config = self.quant_config
        output.zero_()
        dtype = hidden_states.dtype
        first = dequantize_to_dtype(w1, config.w1_scale, config.g1_alphas, dtype, 16, swizzle=False)
        second = dequantize_to_dtype(w2, config.w2_scale, config.g2_alphas, dtype, 16, swizzle=False)
        for expert in range(w1.shape[0]):
            tokens, choices = torch.where(topk_ids == expert)
            if not len(tokens):
                continue
            halves = _activations(hidden_states[tokens], config.a1_gscale) @ first[expert].T
            gate, up = halves.chunk(2, dim=-1)
            states = torch.nn.functional.silu(gate) * up
            result = _activations(states, config.a2_gscale) @ second[expert].T
            output.index_add_(0, tokens, (result * topk_weights[tokens, choices, None]).to(dtype))


def register() -> None:
    """What vLLM calls."""
    kernel = linear.EmulationNvFp4LinearKernel if os.environ["W4A4"] == "1" else DequantizedLinearKernel
    linear.register_linear_kernel(kernel, PlatformEnum.CPU, "nvfp4")
    for module in (modelopt, compressed_tensors_moe_w4a4_nvfp4):
        module.select_nvfp4_moe_backend = lambda **_: (NvFp4MoeBackend.EMULATION, EmulatedExperts)
