"""Measure CUDA-graph memory by what is available, not by what is free, where CPU and GPU share memory.

vLLM captures a few CUDA graphs, looks how much the device's free memory fell, and takes the sum for all graphs out of the KV cache
(and again after capture, to correct the estimate it logs). It asks cudaMemGetInfo, which on GB10 reports the system's
free pages: page cache counts as used. While graphs are captured, compilers write and read files, and the kernel drops page
cache for new allocations, so the difference is graph memory plus or minus page cache. It can come out too large, or below
zero: then the KV cache is sized into memory that is not there (vLLM issues 46307 and 56824 report hosts that freeze).

`MemorySnapshot` already knows better: on an integrated GPU its `free_memory` is the system's available memory, which counts
page cache as available. vLLM uses it for weights and activations; this patch uses it for graphs, in every place where their
memory is measured: the model runners, the graph manager's samples (from 0.29), the encoder runner (from 0.31). On any other
device both give the same number.

Left alone: sleep mode, the draft head's comparison, and image budgets of Gemma 4, which read free memory for other ends.
Before 0.18 no estimate exists; the measured size is printed, nothing is sized by it. The estimate enters the KV cache's
size by default from 0.20 (VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=1).

A setting that avoids the whole computation: --kv-cache-memory-bytes.
"""

from sparkwright.patching.model import Because, Contains, Edit, InsertBefore, Lacks, Patch, Replace, Variant

_WORKER = "vllm/v1/worker"
_RUNNER = f"{_WORKER}/gpu_model_runner.py"
_RUNNER_V2 = f"{_WORKER}/gpu/model_runner.py"
_GRAPHS = f"{_WORKER}/gpu/cudagraph_utils.py"
_ENCODER = f"{_WORKER}/mm_encoder_model_runner.py"

_IMPORT = "from vllm.utils.mem_utils import DeviceMemoryProfiler, format_gib\n"
_IMPORT_SNAPSHOT = (
    "from vllm.utils.mem_utils import (\n    DeviceMemoryProfiler,\n    MemorySnapshot,\n    format_gib,\n)\n"
)

_CUDA = "torch.cuda.mem_get_info()[0]"
_ACCELERATOR = "torch.accelerator.get_memory_info()[0]"


def _reads(path: str, call: str, count: int) -> Replace:
    return Replace(path=path, old=call, new="MemorySnapshot().free_memory", count=count)


def _runners(call: str, count: int) -> tuple[Edit, ...]:
    return (
        Replace(path=_RUNNER, old=_IMPORT, new=_IMPORT_SNAPSHOT),
        _reads(_RUNNER, call, count),
        Replace(path=_RUNNER_V2, old=_IMPORT, new=_IMPORT_SNAPSHOT),
        _reads(_RUNNER_V2, call, 2),
    )


def _others(path: str, before: str) -> tuple[Edit, ...]:
    return (
        InsertBefore(path=path, anchor=before, text="from vllm.utils.mem_utils import MemorySnapshot\n"),
        _reads(path, _ACCELERATOR, 2),
    )


_GRAPH_MANAGER = _others(_GRAPHS, "from vllm.utils.torch_utils import current_stream\n")
_ENCODER_RUNNER = _others(_ENCODER, "from vllm.v1.kv_cache_interface import KVCacheSpec\n")

PATCH = Patch(
    title="CUDA-graph memory is measured by free memory, which counts page cache as used: the KV cache gets a wrong size",
    releases=">=0.18",
    kind="python",
    category="environment",
    reference=f"{_RUNNER}, profile_cudagraph_memory (0.33.0: line 6268); vLLM issues 46307, 56824",
    remove_when="profile_cudagraph_memory and capture_model no longer call get_memory_info",
    guarded_by="tests/patches/test_uma_graph_memory.py",
    variants=(
        Variant(releases="<0.23", edits=_runners(_CUDA, 4)),
        Variant(releases=">=0.23,<0.25", edits=_runners(_CUDA, 6)),
        Variant(releases=">=0.25,<0.29", edits=_runners(_ACCELERATOR, 6)),
        Variant(releases=">=0.29,<0.31", edits=_runners(_ACCELERATOR, 6) + _GRAPH_MANAGER),
        Variant(releases=">=0.31", edits=_runners(_ACCELERATOR, 6) + _GRAPH_MANAGER + _ENCODER_RUNNER),
    ),
    not_applicable=(
        Because(
            signs=(
                Lacks(path=_RUNNER, text="def profile_cudagraph_memory"),
                Contains(path=_RUNNER, text=_CUDA, count=2),
            ),
            why="graph memory is printed here, not estimated; nothing is sized by it",
            releases="<0.18",
        ),
    ),
)
