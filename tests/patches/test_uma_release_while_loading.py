"""uma-release-while-loading: on shared memory the allocator's cache is given back before the host runs dry."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from tests.patches.upstream_code import extract, patched_files

pytestmark = pytest.mark.sources

GIB = 1 << 30
TOTAL = 120 * GIB


class _Machine:
    """A machine on which every layer keeps 2 GiB of weights and leaves 3 GiB in the allocator's cache."""

    def __init__(self, *, shared: bool) -> None:
        self.shared = shared
        self.allocated = 0
        self.reserved = 0
        self.least_available = TOTAL
        self.releases = 0
        self.torch = SimpleNamespace(
            cuda=SimpleNamespace(
                get_device_properties=lambda _: SimpleNamespace(is_integrated=shared),
                memory_reserved=lambda _: self.reserved,
                memory_allocated=lambda _: self.allocated,
                synchronize=lambda _: None,
                empty_cache=self._empty_cache,
            )
        )
        self.psutil = SimpleNamespace(virtual_memory=self._virtual_memory)

    def _virtual_memory(self) -> SimpleNamespace:
        used = self.reserved if self.shared else 0
        return SimpleNamespace(total=TOTAL, available=TOTAL - used)

    def _empty_cache(self) -> None:
        self.reserved = self.allocated
        self.releases += 1

    def process(self, _: object) -> None:
        self.allocated += 2 * GIB
        self.reserved += 5 * GIB
        self.least_available = min(self.least_available, self._virtual_memory().available)


def _load(loader: Path, memory: Path, machine: _Machine, *, layers: int = 24, device: str = "cuda") -> None:
    """Run the real process_weights_after_loading over layers of a model."""
    quantized = type("QuantizeMethodBase", (), {"process_weights_after_loading": machine.process})
    helpers = {}
    if "def release_unused_device_memory(" in memory.read_text(encoding="utf-8"):
        helpers["release_unused_device_memory"] = extract(
            memory, "release_unused_device_memory", torch=machine.torch, psutil=machine.psutil, MiB_bytes=1 << 20
        )
    process = extract(
        loader,
        "process_weights_after_loading",
        QuantizeMethodBase=quantized,
        Attention=_Absent,
        MLAAttention=_Absent,
        MMEncoderAttention=_Absent,
        **helpers,
    )
    method = quantized()
    method.process_weights_after_loading = machine.process

    def modules() -> Iterator[tuple[str, object]]:
        for layer in range(layers):
            yield f"layers.{layer}", SimpleNamespace(quant_method=method)

    process(SimpleNamespace(named_modules=modules), MagicMock(quantization=None), SimpleNamespace(type=device, index=0))


class _Absent:
    """Stands for attention layers, of which this model has none."""


@pytest.mark.parametrize("version", ["0.16.0", "0.19.1"])
def test_a_fifth_of_the_memory_stays_available(version: str, vllm_tree: Callable[[str], Path], tmp_path: Path) -> None:
    before = vllm_tree(version)
    after = patched_files(before, version, "uma-release-while-loading", tmp_path)
    paths = ("vllm/model_executor/model_loader/utils.py", "vllm/utils/mem_utils.py")

    machine = _Machine(shared=True)
    _load(before / paths[0], before / paths[1], machine)
    assert machine.releases == 0
    assert machine.least_available <= 0

    machine = _Machine(shared=True)
    _load(after / paths[0], after / paths[1], machine)
    assert machine.releases > 0
    assert machine.least_available > TOTAL // 5 - 5 * GIB

    plenty = _Machine(shared=True)
    _load(after / paths[0], after / paths[1], plenty, layers=4)
    assert plenty.releases == 0

    discrete = _Machine(shared=False)
    _load(after / paths[0], after / paths[1], discrete)
    assert discrete.releases == 0

    on_cpu = _Machine(shared=True)
    _load(after / paths[0], after / paths[1], on_cpu, device="cpu")
    assert on_cpu.releases == 0
