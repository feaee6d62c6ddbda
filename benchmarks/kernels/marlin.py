"""Marlin's NVFP4 products as the installed vLLM's own layers run them, for decode.py to compare with.

vLLM makes the workspace, where Marlin's blocks keep their locks, once and for all layers; so does decode.py, or each
call would clear a new one. What is imported and called here is checked against the pinned source by a test.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch  # type: ignore[import-not-found]

Product = Callable[..., Any]


def workspace(device: Any) -> Any:  # noqa: ANN401
    """Locks that every product on this device may share; Marlin leaves them cleared."""
    from vllm.model_executor.layers.quantization.utils.marlin_utils import (  # type: ignore[import-not-found]
        get_marlin_workspace,
    )

    if device.type != "cuda":
        raise RuntimeError("Marlin runs on CUDA only")
    return get_marlin_workspace(device)


def linear(packed: Any, scales: Any, scale: Any, locks: Any) -> Product:  # noqa: ANN401
    """A linear layer's product of x, on a repacked copy of these weights."""
    from vllm.model_executor.layers.quantization.utils.marlin_utils_fp4 import (  # type: ignore[import-not-found]
        apply_fp4_marlin_linear,
        prepare_fp4_layer_for_marlin,
    )

    rows, width = packed.shape[0], packed.shape[1] * 2
    layer = torch.nn.Module()
    layer.output_size_per_partition, layer.input_size_per_partition = rows, width
    layer.params_dtype = torch.bfloat16
    for name, value in {"weight": packed, "weight_scale": scales, "weight_global_scale": scale}.items():
        layer.register_parameter(name, torch.nn.Parameter(value.clone(), requires_grad=False))
    prepare_fp4_layer_for_marlin(layer)

    def product(x: Any) -> Any:  # noqa: ANN401
        return apply_fp4_marlin_linear(
            input=x,
            weight=layer.weight,
            weight_scale=layer.weight_scale,
            weight_global_scale=layer.weight_global_scale,
            workspace=locks,
            size_n=rows,
            size_k=width,
        )

    return product


def experts(w13: Any, s13: Any, g13: Any, w2: Any, s2: Any, g2: Any, locks: Any) -> Product:  # noqa: ANN401
    """The routed experts' product of x and its choices' weights and ids, on a repacked copy; g13 is for gate and up."""
    import vllm._custom_ops as ops  # type: ignore[import-not-found]
    from vllm.model_executor.layers.fused_moe.experts.marlin_moe import (  # type: ignore[import-not-found]
        fused_marlin_moe,
    )
    from vllm.model_executor.layers.quantization.utils.marlin_utils_fp4 import prepare_nvfp4_moe_layer_for_marlin
    from vllm.scalar_type import scalar_types  # type: ignore[import-not-found]

    layer = SimpleNamespace(
        num_experts=w13.shape[0],
        hidden_size=w2.shape[1],
        intermediate_size_per_partition=w13.shape[1] // 2,
        params_dtype=torch.bfloat16,
    )
    p13, q13, r13, p2, q2, r2 = prepare_nvfp4_moe_layer_for_marlin(
        layer=layer,
        w13=w13,
        w13_scale=s13,
        w13_scale_2=g13,
        w2=w2,
        w2_scale=s2,
        w2_scale_2=g2,
        is_act_and_mul=True,
    )

    def moe_sum(products: Any, out: Any, topk_ids: Any, expert_map: Any) -> Any:  # noqa: ANN401
        """As vLLM's MarlinExperts: without one, fused_marlin_moe takes torch.sum."""
        del topk_ids, expert_map
        ops.moe_sum(products, out)
        return out

    def product(x: Any, topk_weights: Any, topk_ids: Any) -> Any:  # noqa: ANN401
        return fused_marlin_moe(
            hidden_states=x,
            w1=p13,
            w2=p2,
            bias1=None,
            bias2=None,
            w1_scale=q13,
            w2_scale=q2,
            topk_weights=topk_weights,
            topk_ids=topk_ids,
            quant_type_id=scalar_types.float4_e2m1f.id,
            global_num_experts=layer.num_experts,
            global_scale1=r13,
            global_scale2=r2,
            moe_sum=moe_sum,
            workspace=locks,
        )

    return product
