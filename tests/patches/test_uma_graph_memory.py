"""uma-graph-memory: what page cache does during capture does not count as graph memory."""

import contextlib
import dataclasses
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from tests.patches.upstream_code import extract, patched_files

pytestmark = pytest.mark.sources

NAME = "uma-graph-memory"
GIB = 1 << 30
GRAPH = 2 * GIB
WORKER = "vllm/v1/worker"


class _Machine:
    """A GPU that shares 120 GiB with its host: what is not used is free or page cache."""

    def __init__(self, *, cache_change: int) -> None:
        self.used = 40 * GIB
        self.page_cache = 30 * GIB
        self._cache_change = cache_change

    def capture(self, *_: object, **__: object) -> None:
        self.used += GRAPH
        self.page_cache += self._cache_change

    def memory_info(self, _: object = None) -> tuple[int, int]:
        """As cudaMemGetInfo on an integrated GPU: page cache is not free."""
        return 120 * GIB - self.used - self.page_cache, 120 * GIB

    def torch(self) -> MagicMock:
        torch = MagicMock()
        torch.cuda.mem_get_info = self.memory_info
        torch.accelerator.get_memory_info = self.memory_info
        return torch

    def snapshot(self, tree: Path) -> object:
        """The tree's own MemorySnapshot on this machine."""
        platform = MagicMock(
            mem_get_info=self.memory_info,
            get_device_capability=lambda _: (12, 1),
            is_integrated_gpu=lambda _: True,
        )
        platform.memory_stats.return_value = platform.memory_reserved.return_value = {}
        torch = self.torch()
        torch.accelerator.memory_reserved.return_value = platform.memory_reserved.return_value = 0
        torch.accelerator.memory_stats.return_value = {}
        return extract(
            tree / "vllm/utils/mem_utils.py",
            "MemorySnapshot",
            dataclass=dataclasses.dataclass,
            torch=torch,
            current_platform=platform,
            psutil=SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=120 * GIB - self.used)),
        )


def _captured_by_runner(tree: Path, pristine: Path, machine: _Machine) -> int:
    """GPUModelRunner.capture_model of the new runner, whose graph manager captures one graph."""
    capture_model = extract(
        tree / WORKER / "gpu/model_runner.py",
        "GPUModelRunner.capture_model",
        torch=machine.torch(),
        MemorySnapshot=machine.snapshot(pristine),
        time=SimpleNamespace(perf_counter=lambda: 0.0),
    )
    runner = MagicMock(adaptive_verification=None, speculator=None)
    runner.model_state.encoder_runner.has_cudagraph.return_value = False
    runner.cudagraph_manager.capture = machine.capture
    size: int = capture_model(runner)
    return size


def _estimated(tree: Path, pristine: Path, machine: _Machine) -> int:
    """GPUModelRunner.profile_cudagraph_memory of the default runner, for one graph."""
    profile = extract(
        tree / WORKER / "gpu_model_runner.py",
        "GPUModelRunner.profile_cudagraph_memory",
        torch=machine.torch(),
        MemorySnapshot=machine.snapshot(pristine),
        CUDAGraphWrapper=MagicMock(_all_instances=[]),
        BreakableCUDAGraphWrapper=MagicMock(_all_instances=[]),
    )
    runner = MagicMock(max_model_len=1, max_num_tokens=1)
    runner.cudagraph_dispatcher.get_capture_descs.return_value = [(MagicMock(), [MagicMock(num_tokens=1)])]
    runner.cudagraph_dispatcher.cudagraph_keys = {}
    runner._create_encoder_cudagraph_manager.return_value = None
    runner._warmup_and_capture = machine.capture
    runner._dummy_run = machine.capture
    size: int = profile(runner)
    return size


def _captured_by_encoder(tree: Path, pristine: Path, machine: _Machine) -> int:
    """capture_model of the runner that serves an encoder alone."""
    capture_model = extract(
        tree / WORKER / "mm_encoder_model_runner.py",
        "MMEncoderModelRunner.capture_model",
        torch=machine.torch(),
        MemorySnapshot=machine.snapshot(pristine),
        time=SimpleNamespace(perf_counter=lambda: 0.0),
    )
    runner = MagicMock()
    runner.model_state.encoder_runner.capture = machine.capture
    size: int = capture_model(runner)
    return size


class _Mode(Enum):
    """As CUDAGraphMode."""

    NONE = 0
    PIECEWISE = 1
    FULL = 2


def _sampled_by_graph_manager(tree: Path, pristine: Path, machine: _Machine) -> int:
    """The sample that CudaGraphManager.capture takes of one graph, from which the new runner's estimate is made."""
    capture = extract(
        tree / WORKER / "gpu/cudagraph_utils.py",
        "CudaGraphManager.capture",
        torch=machine.torch(),
        MemorySnapshot=machine.snapshot(pristine),
        CUDAGraphMode=_Mode,
        ExitStack=contextlib.ExitStack,
        is_global_first_rank=lambda: False,
    )
    samples: list[int] = []
    manager = MagicMock(
        ubatch_runner=None,
        use_breakable_cg=False,
        graphs={},
        _capture_descs={_Mode.FULL: [MagicMock(cg_mode=_Mode.FULL)]},
        _max_full_descs_to_capture=None,
        _capture_mem_samples=samples,
    )
    capture(manager, lambda *_, **__: machine.capture)
    (sample,) = samples
    return sample


CASES = [
    ("0.19.1", _captured_by_runner),
    ("0.19.1", _estimated),
    ("0.24.0", _estimated),
    ("0.28.0", _estimated),
    ("0.33.0", _captured_by_runner),
    ("0.33.0", _estimated),
    ("0.33.0", _sampled_by_graph_manager),
    ("0.33.0", _captured_by_encoder),
]


@pytest.mark.parametrize("cache_change", [-5 * GIB, 0, 3 * GIB])
@pytest.mark.parametrize(("version", "measure"), CASES)
def test_graph_memory_is_the_graphs_alone(
    version: str,
    measure: Callable[[Path, Path, _Machine], int],
    cache_change: int,
    vllm_tree: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    before = vllm_tree(version)
    after = patched_files(before, version, NAME, tmp_path)
    assert measure(before, before, _Machine(cache_change=cache_change)) == GRAPH + cache_change
    assert measure(after, before, _Machine(cache_change=cache_change)) == GRAPH


@pytest.mark.parametrize("version", ["0.19.1", "0.24.0", "0.28.0", "0.33.0"])
def test_every_patched_file_imports_what_it_uses(
    version: str, vllm_tree: Callable[[str], Path], tmp_path: Path
) -> None:
    after = patched_files(vllm_tree(version), version, NAME, tmp_path)
    files = sorted(after.rglob("*.py"))
    assert len(files) >= 2
    for file in files:
        text = file.read_text(encoding="utf-8")
        compile(text, str(file), "exec")
        assert text.count("MemorySnapshot().free_memory") >= 2
        assert "import MemorySnapshot\n" in text or "    MemorySnapshot,\n" in text
