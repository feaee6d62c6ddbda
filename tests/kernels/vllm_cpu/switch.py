"""What the plugin's switch does in a process of vLLM: to its compile cache, to its registries, to compiled graphs.

A layer of 16 rows and 32 columns is enough: which operator runs is asked, and whether dynamic numbers of tokens work.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch  # type: ignore[import-not-found]
from gb10_kernels import reference, vllm_plugin  # type: ignore[import-not-found]
from torch.nn import Module, Parameter  # type: ignore[import-not-found]
from vllm import envs  # type: ignore[import-not-found]
from vllm.compilation.decorators import support_torch_compile  # type: ignore[import-not-found]
from vllm.config import (  # type: ignore[import-not-found]
    CompilationConfig,
    CompilationMode,
    KernelConfig,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.forward_context import set_forward_context  # type: ignore[import-not-found]
from vllm.model_executor.kernels import linear as registry  # type: ignore[import-not-found]
from vllm.model_executor.layers.linear import ReplicatedLinear  # type: ignore[import-not-found]
from vllm.model_executor.layers.quantization import (  # type: ignore[import-not-found]
    get_quantization_config,
)
from vllm.platforms import PlatformEnum  # type: ignore[import-not-found]

ROWS, WIDTH = 16, 32
NUMBERS = (20, 3)
# Not test_schema: it multiplies every input to see whether it changes, and torch cannot multiply float8 on a CPU.
OPCHECKS = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


class EmulationNvFp4LinearKernel(registry.EmulationNvFp4LinearKernel):  # type: ignore[misc]
    """vLLM's in name, and so in layout, for the plugin; and fast to compile."""

    def apply_weights(self, layer: Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Something that is no product with the weights."""
        del bias
        return x.sum(-1, keepdim=True) + layer.weight.sum(-1).to(x.dtype)


@support_torch_compile
class Model(Module):  # type: ignore[misc]
    """One layer, compiled and kept as vLLM does it."""

    def __init__(self, *, vllm_config: Any, prefix: str = "", kernel: Any, layer: Module) -> None:  # noqa: ANN401
        super().__init__()
        del vllm_config, prefix
        self.kernel, self.layer = kernel, layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's product, doubled so that there is something to compile beside the operator."""
        return self.kernel.apply_weights(self.layer, x) * 2


def _layer() -> tuple[Module, torch.Tensor]:
    """A layer as vLLM has loaded it, and its weights."""
    generator = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, (ROWS, WIDTH // 2), dtype=torch.uint8, generator=generator)
    scales = torch.rand(ROWS, WIDTH // 16, generator=generator).to(torch.float8_e4m3fn)
    layer = Module()
    layer.input_size_per_partition, layer.output_size_per_partition = WIDTH, ROWS
    layer.prefix = "layer"
    for name, value in {
        "weight": packed,
        "weight_scale": scales,
        "weight_global_scale": torch.tensor(0.5),
        "alpha": torch.tensor(0.1),
        "input_global_scale_inv": torch.tensor(5.0),
    }.items():
        layer.register_parameter(name, Parameter(value, requires_grad=False))
    return layer, reference.dequantize(packed, scales, 0.5)


@contextmanager
def _config() -> Iterator[Any]:
    config = VllmConfig(
        compilation_config=CompilationConfig(
            mode=CompilationMode.VLLM_COMPILE, backend="inductor", cudagraph_mode="NONE"
        )
    )
    # What vLLM sets on a CPU goes another way than on a GPU.
    config.compilation_config.mode = CompilationMode.VLLM_COMPILE
    config.compilation_config.splitting_ops, config.compilation_config.compile_sizes = [], []
    with set_current_vllm_config(config), set_forward_context(None, config), torch.no_grad():
        yield config


def _served() -> dict[str, Any]:
    """What a server of this model would do now: whether its graph was kept on disk, and who took which batch."""
    torch._dynamo.reset()
    layer, weights = _layer()
    with _config() as config:
        kernel = registry.init_nvfp4_linear_kernel()
        kernel.process_weights_after_loading(layer)
        model = Model(vllm_config=config, kernel=kernel, layer=layer)
        own = []
        for tokens in NUMBERS:
            x = torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(tokens)).to(torch.bfloat16)
            wanted = 2 * x.double() @ weights.T
            error = (model(x).double() - wanted).abs().max() / wanted.abs().max()
            own.append(bool(error < 2**-7))
        return {"from disk": model.was_aot_compile_fn_loaded_from_disk, "own kernel": own}


def _registered() -> list[str]:
    configurations = [get_quantization_config(name) for name in ("modelopt_fp4", "compressed-tensors")]
    return [each.__name__ for each in (*registry._POSSIBLE_NVFP4_KERNELS[PlatformEnum.CPU], *configurations)]


def _told(backend: str) -> list[str]:
    """Of which layers the log says that they stay with vLLM, where --linear-backend is this."""
    from gb10_kernels.vllm_plugin import linear, moe  # type: ignore[import-not-found]

    told: list[str] = []
    linear.tell, tell = lambda layers, reason: told.append(f"{layers}: {reason}"), linear.tell
    linear.tell_if_never_asked.cache_clear()
    nvfp4: dict[str, object] = {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": None,
        "exclude_modules": [],
        "group_size": 16,
    }
    quantization = moe.DecodeModelOptNvFp4Config.from_config({"quantization": nvfp4})
    with set_current_vllm_config(VllmConfig(kernel_config=KernelConfig(linear_backend=backend))):
        for prefix in ("first", "second"):
            quantization.get_quant_method(object.__new__(ReplicatedLinear), prefix)
    linear.tell = tell
    return told


def _operator() -> list[list[int]]:
    """The plugin's operator by itself: what torch asks of an operator, and one graph for every number of tokens."""
    from gb10_kernels.vllm_plugin import linear

    layer, _ = _layer()

    def given(tokens: int) -> tuple[object, ...]:
        x = torch.ones(tokens, WIDTH, dtype=torch.bfloat16)
        tensors = (layer.weight, layer.weight_scale, layer.weight_global_scale)
        return x, *tensors, layer.alpha, layer.input_global_scale_inv, ROWS, "EmulationNvFp4LinearKernel"

    graphs = []

    def backend(graph: object, _: object) -> object:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(linear.nvfp4_linear, dynamic=True, fullgraph=True, backend=backend)
    shapes = []
    for tokens in NUMBERS:
        torch.library.opcheck(linear.nvfp4_linear, given(tokens), test_utils=OPCHECKS)
        result = compiled(*given(tokens))
        assert torch.equal(result, linear.nvfp4_linear(*given(tokens)))
        shapes.append(list(result.shape))
    assert len(graphs) == 1
    return shapes


def found() -> dict[str, Any]:
    """Each of the questions, answered; it changes vLLM in this process."""
    for kernel in (EmulationNvFp4LinearKernel, registry.EmulationNvFp4LinearKernel):
        registry.register_linear_kernel(kernel, PlatformEnum.CPU, "nvfp4")
    answers: dict[str, Any] = {"served": {}}
    answers["served"]["off"] = _served()
    os.environ["GB10_KERNELS"] = "1"
    before = _registered()
    os.environ["VLLM_BATCH_INVARIANT"] = "1"
    vllm_plugin.register()
    answers["invariant"] = _registered() == before
    del os.environ["VLLM_BATCH_INVARIANT"]
    vllm_plugin.register()
    answers["changed"] = _registered() != before
    answers["served"]["on"] = _served()
    answers["served"]["on again"] = _served()
    answers["operator"] = _operator()
    answers["told"] = {backend: _told(backend) for backend in ("auto", "emulation")}
    # As in a process in which it was never switched on.
    kernels = registry._POSSIBLE_NVFP4_KERNELS[PlatformEnum.CPU]
    kernels.remove(next(each for each in kernels if each.__name__ == "Gb10NvFp4LinearKernel"))
    envs.environment_variables.pop("GB10_KERNELS", None)
    answers["served"]["off again"] = _served()
    return answers
