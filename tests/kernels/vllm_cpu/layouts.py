"""vLLM's own classes lay out NVFP4 weights for each of its kernels; the plugin must compute with what they leave.

    python layouts.py OUTPUT.json    the largest relative error of each case; what went back to vLLM; switch's answers

The weights are turned over as in a server with a GPU, only that they stay on the CPU and that no GEMM of vLLM runs.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import switch  # type: ignore[import-not-found]
import torch  # type: ignore[import-not-found]
from gb10_kernels import reference  # type: ignore[import-not-found]
from gb10_kernels.vllm_plugin import linear, moe  # type: ignore[import-not-found]
from torch.nn import Module, Parameter  # type: ignore[import-not-found]
from vllm.model_executor.kernels import linear as registry  # type: ignore[import-not-found]
from vllm.model_executor.layers.fused_moe.activation import MoEActivation  # type: ignore[import-not-found]
from vllm.model_executor.layers.fused_moe.all2all_utils import (  # type: ignore[import-not-found]
    maybe_make_prepare_finalize,
)
from vllm.model_executor.layers.fused_moe.config import FusedMoEParallelConfig  # type: ignore[import-not-found]
from vllm.model_executor.layers.fused_moe.expert_map_manager import (  # type: ignore[import-not-found]
    determine_expert_map,
)
from vllm.model_executor.layers.fused_moe.oracle.nvfp4 import NvFp4MoeBackend  # type: ignore[import-not-found]
from vllm.model_executor.layers.quantization import modelopt  # type: ignore[import-not-found]
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (  # type: ignore[import-not-found]
    CompressedTensorsLinearMethod,
)
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (  # type: ignore[import-not-found]
    compressed_tensors_moe_w4a4_nvfp4 as compressed,
)
from vllm.model_executor.layers.quantization.compressed_tensors.schemes.compressed_tensors_w4a4_nvfp4 import (  # type: ignore[import-not-found]
    CompressedTensorsW4A4Fp4,
)
from vllm.model_executor.layers.quantization.compressed_tensors.transform.schemes.linear_qutlass_nvfp4 import (  # type: ignore[import-not-found]
    QutlassNvFP4LinearMethod,
)

GENERATOR = torch.Generator().manual_seed(0)
TOKENS = 3


def parameter(value: torch.Tensor) -> Parameter:
    return Parameter(value, requires_grad=False)


def weights(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    *experts, rows, width = shape
    packed = torch.randint(0, 256, (*experts, rows, width // 2), dtype=torch.uint8, generator=GENERATOR)
    scales = (torch.rand(*experts, rows, width // 16, generator=GENERATOR) + 0.1).to(torch.float8_e4m3fn)
    return packed, scales


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(((got.double() - wanted).abs().max() / wanted.abs().max()).item())


def wrapped(name: str) -> linear.Gb10NvFp4LinearKernel:
    """The plugin's kernel as it is after vLLM has chosen the one of this name; that one's GEMM says who called it."""
    inner = object.__new__(getattr(registry, name))
    inner.apply_weights = lambda layer, x, *_: SimpleNamespace(layer=layer, x=x)
    kernel = object.__new__(linear.Gb10NvFp4LinearKernel)
    kernel.inner, kernel.name, kernel.reads = inner, name, False
    linear._wrapped[name] = inner
    return kernel


def compressed_tensors_layer(
    kernel: linear.Gb10NvFp4LinearKernel, packed: torch.Tensor, scales: torch.Tensor
) -> Module:
    """A layer as it is after its weights are loaded."""
    layer = Module()
    layer.scheme = object.__new__(CompressedTensorsW4A4Fp4)
    layer.scheme.use_a16, layer.scheme.kernel = False, kernel
    layer.input_size_per_partition, layer.output_size_per_partition = packed.shape[1] * 2, packed.shape[0]
    layer.weight_packed, layer.weight_scale = parameter(packed.clone()), parameter(scales.clone())
    # It divides, and of several the largest is taken.
    layer.weight_global_scale = parameter(torch.tensor([37.0, 37.0]))
    layer.input_global_scale = parameter(torch.tensor([5.0, 5.0]))
    return layer


# The second: rows and width that vLLM pads for its own GEMM.
LINEARS = ((160, 128), (72, 80))


def linear_layers() -> Iterator[tuple[str, float]]:
    for name in linear.TILED:
        for rows, width in LINEARS:
            packed, scales = weights(rows, width)
            x = torch.randn(TOKENS, width, generator=GENERATOR).to(torch.bfloat16)
            kernel = wrapped(name)
            layer = compressed_tensors_layer(kernel, packed, scales)
            scheme = layer.scheme
            scheme.process_weights_after_loading(layer)
            assert kernel.reads, name
            wanted = reference.gemv(x, packed, scales, 1 / 37.0)
            yield f"{name} {rows} x {width}", error(scheme.apply_weights(layer, x), wanted)
            # A larger batch is the wrapped kernel's, with all that its GEMM reads of a layer.
            many = torch.zeros(linear.ops.MOST_TOKENS + 1, width, dtype=torch.bfloat16)
            called = linear._wrapped[name].apply_weights
            seen: list[Any] = []
            linear._wrapped[name].apply_weights = lambda layer, x, seen=seen, rows=rows: (
                seen.append(layer) or x.new_zeros(x.shape[0], rows)
            )
            assert scheme.apply_weights(layer, many).shape == (many.shape[0], rows)
            linear._wrapped[name].apply_weights = called
            (given,) = seen
            assert given.weight.data_ptr() == layer.weight.data_ptr(), "the weights are not copied"
            assert torch.equal(given.alpha, layer.alpha)
            assert torch.equal(given.input_global_scale_inv, layer.input_global_scale_inv)


def transformed_layer() -> dict[str, Any]:
    """A layer behind a Hadamard transform, whose method multiplies by itself and asks for the class of the kernel."""
    packed, scales = weights(128, 128)
    kernel = wrapped("FlashInferCutlassNvFp4LinearKernel")
    method = object.__new__(QutlassNvFP4LinearMethod)
    method.quant_method = CompressedTensorsLinearMethod(None)
    method.input_transform = SimpleNamespace(weight=SimpleNamespace(partitions=[torch.eye(16)]))
    layer = compressed_tensors_layer(kernel, packed, scales)
    layer.quant_method = method
    method.process_weights_after_loading(layer)
    return {"backend": layer.flashinfer_gemm_backend, "reads": kernel.reads}


def expert_layers() -> Iterator[tuple[str, float]]:
    experts, hidden, inner, choices = 4, 128, 64, 2
    for kind in ("modelopt", "compressed-tensors"):
        for backend in moe.LAYOUTS:
            w13, s13 = weights(experts, 2 * inner, hidden)
            w2, s2 = weights(experts, hidden, inner)
            g13 = torch.rand(experts, 1, generator=GENERATOR).repeat(1, 2) * 0.02 + 0.001
            g2 = torch.rand(experts, generator=GENERATOR) * 0.02 + 0.001
            x = torch.randn(TOKENS, hidden, generator=GENERATOR).to(torch.bfloat16)
            topk_weights = torch.rand(TOKENS, choices, generator=GENERATOR)
            for ranks in (1, 2):
                layer, method = _experts(kind, backend, w13, s13, g13, w2, s2, g2)
                method.moe.moe_parallel_config = _parallel(ranks)
                # As the last rank: of two it has the upper half of twice the experts, and adds nothing for the others.
                layer.expert_map = determine_expert_map(ranks, ranks - 1, ranks * experts)[1]
                method.process_weights_after_loading(layer)
                assert method.experts is not None, f"{kind} {backend} stays with vLLM"
                ids = torch.randint(0, ranks * experts, (TOKENS, choices), generator=GENERATOR)
                got = method.apply(layer, x, topk_weights, ids, None, None)
                wanted = reference.moe_decode(
                    x, w13, s13, g13, w2, s2, g2, topk_weights, ids, expert_map=layer.expert_map
                )
                yield f"{kind} {backend}, {ranks} ranks", error(got, wanted)


def _parallel(ranks: int) -> FusedMoEParallelConfig:
    """Experts over this many ranks of tensor parallelism, without data parallelism."""
    alone = {f"{name}_{what}": int(what == "size") for name in ("tp", "pcp", "dp") for what in ("size", "rank")}
    return FusedMoEParallelConfig(
        **alone,
        ep_size=ranks,
        ep_rank=ranks - 1,
        sp_size=1,
        use_ep=ranks > 1,
        all2all_backend="allgather_reducescatter",
        enable_eplb=False,
    )


def _experts(kind: str, backend: str, *given: torch.Tensor) -> tuple[Module, Any]:
    w13, s13, g13, w2, s2, g2 = (value.clone() for value in given)
    experts, _, half = w13.shape
    layer = Module()
    config = SimpleNamespace(
        intermediate_size_per_partition=w2.shape[2] * 2,
        hidden_dim=half * 2,
        experts_per_token=2,
        has_bias=False,
        is_lora_enabled=False,
        in_dtype=torch.bfloat16,
        is_act_and_mul=True,
    )
    layer.activation, layer.moe_config = MoEActivation.SILU, config
    layer.apply_router_weight_on_input, layer.layer_name = False, "layer"
    layer._expert_routing_tables = lambda: None
    values = {"w13_weight_scale": s13, "w2_weight_scale": s2}
    if kind == "modelopt":
        method = object.__new__(moe.DecodeModelOptNvFp4FusedMoE)
        method.per_token_activation = False
        values |= {"w13_weight": w13, "w2_weight": w2, "w13_weight_scale_2": g13, "w2_weight_scale_2": g2}
        values |= {"w13_input_scale": torch.ones(experts, 2), "w2_input_scale": torch.ones(experts)}
    else:
        method = object.__new__(moe.DecodeCompressedTensorsNvfp4MoEMethod)
        values |= {"w13_weight_packed": w13, "w2_weight_packed": w2}
        values |= {"w13_weight_global_scale": 1 / g13, "w2_weight_global_scale": 1 / g2}
        values |= {"w13_input_global_scale": torch.ones(experts, 2), "w2_input_global_scale": torch.ones(experts)}
    for name, value in values.items():
        layer.register_parameter(name, parameter(value))
    method.moe, method.use_a16, method.experts_cls = config, False, object
    method.nvfp4_backend = NvFp4MoeBackend(backend)
    return layer, method


def leave_out_the_gpu() -> None:
    """Replace what needs one: the move to it, and vLLM's own kernel object."""
    torch.Tensor.cuda = lambda self, *_, **__: self

    def kernel(*, moe_config: Any, **_: object) -> SimpleNamespace:  # noqa: ANN401
        return SimpleNamespace(
            prepare_finalize=maybe_make_prepare_finalize(moe_config, None, allow_new_interface=True),
            fused_experts=SimpleNamespace(process_weights_after_loading=lambda _: None),
            is_monolithic=False,
        )

    for module in (modelopt, compressed):
        module.make_nvfp4_moe_kernel = kernel


def main() -> None:
    """Write what was found."""
    switched = switch.found()
    leave_out_the_gpu()
    found = {
        "linear": dict(linear_layers()),
        "transformed": transformed_layer(),
        "experts": dict(expert_layers()),
        "switch": switched,
    }
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
