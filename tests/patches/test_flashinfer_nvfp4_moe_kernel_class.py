"""flashinfer-nvfp4-moe-kernel-class: the selection returns the class of the backend it chose."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.patches.upstream_code import extract, patched_files

pytestmark = pytest.mark.sources

ORACLE = "vllm/model_executor/layers/fused_moe/oracle/nvfp4.py"


class _Experts:
    """Stands for FlashInferExperts, which supports the layer."""

    @staticmethod
    def is_supported_config(*_: object) -> tuple[bool, None]:
        return True, None


def _select(tree: Path, *, trtllm: bool) -> tuple[str, object]:
    """Run the real selection with VLLM_USE_FLASHINFER_MOE_FP4=1, on a device with or without TRTLLM (GB10: without)."""

    def is_set(name: str) -> bool:
        return name == "VLLM_USE_FLASHINFER_MOE_FP4"

    backends = SimpleNamespace(
        **{
            name: SimpleNamespace(value=name)
            for name in ("FLASHINFER_TRTLLM", "FLASHINFER_CUTEDSL", "FLASHINFER_CUTLASS", "VLLM_CUTLASS", "MARLIN")
        }
    )
    select = extract(
        tree / ORACLE,
        "select_nvfp4_moe_backend",
        NvFp4MoeBackend=backends,
        FLASHINFER_NVFP4_MOE_BACKENDS=[backends.FLASHINFER_TRTLLM, backends.FLASHINFER_CUTLASS],
        envs=SimpleNamespace(is_set=is_set, VLLM_USE_FLASHINFER_MOE_FP4=True, VLLM_TEST_FORCE_FP8_MARLIN=False),
        is_supported_config_trtllm=lambda *_: (trtllm, "not this device"),
        backend_to_kernel_cls=lambda _: _Experts,
    )
    parallel = SimpleNamespace(use_deepep_ll_kernels=False, use_pplx_kernels=False)
    backend, kernel_class = select(SimpleNamespace(moe_parallel_config=parallel), None, None)
    return backend.value, kernel_class


def test_the_class_comes_with_the_backend(vllm_tree: Callable[[str], Path], tmp_path: Path) -> None:
    before = vllm_tree("0.16.0")
    assert _select(before, trtllm=False) == ("FLASHINFER_CUTLASS", None)

    after = patched_files(before, "0.16.0", "flashinfer-nvfp4-moe-kernel-class", tmp_path)
    assert _select(after, trtllm=False) == ("FLASHINFER_CUTLASS", _Experts)
    assert _select(after, trtllm=True) == ("FLASHINFER_TRTLLM", None)
