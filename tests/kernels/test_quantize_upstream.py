"""nvfp4_quantize against upstream's own code: vLLM's reference of scaled_fp4_quant, and modelopt's NVFP4QTensor."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.environments import environment
from tests.kernels.build import HERE
from tests.kernels.launchers import DTYPES, Array, Launchers
from tests.kernels.reference import E2M1_VALUES, E4M3, unpack

from sparkwright.paths import CHECKOUT
from sparkwright.run import run

pytestmark = [pytest.mark.sources, pytest.mark.compiles]

EMULATION = "vllm/model_executor/layers/quantization/utils/nvfp4_emulation_utils.py"


def cases() -> dict[str, tuple[Array, float, float]]:
    """By name: x, vLLM's global scale and modelopt's."""
    made: dict[str, tuple[Array, float, float]] = {}
    for name, dtype in DTYPES.items():
        finite = np.arange(65536, dtype=np.uint16).view(dtype)
        finite = finite[np.isfinite(finite.astype(np.float32))]
        random = np.random.default_rng(4)
        usual = (
            (random.normal(size=(512, 512)) * np.exp2(random.integers(-9, 4, (512, 1))))
            .astype(np.float32)
            .astype(dtype)
        )
        largest = float(np.abs(usual.astype(np.float32)).max())
        made[f"{name}-usual"] = (usual, 448 * 6 / largest, largest / (448 * 6))
        every = random.permutation(finite)[: finite.size // 512 * 512].reshape(-1, 512)
        ordered = finite[: finite.size // 512 * 512].reshape(-1, 512)
        made[f"{name}-every"] = (every, 77.7, 1 / 77.7)
        made[f"{name}-ordered"] = (ordered, 0.01, 1 / 0.01)
    return made


@pytest.fixture(scope="module")
def upstream(vllm_tree: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    folder = tmp_path_factory.mktemp("upstream")
    inputs: dict[str, Array] = {}
    for name, (x, g, g2) in cases().items():
        inputs |= {f"{name}:x": x.astype(np.float32), f"{name}:g": np.array(g), f"{name}:g2": np.array(g2)}
    np.savez(folder / "in.npz", allow_pickle=False, **inputs)
    script = [HERE / "upstream_rules.py", vllm_tree("0.33.0") / EMULATION, folder / "in.npz", folder / "out.npz"]
    run([environment("quantize.txt", editable=CHECKOUT), *script])
    with np.load(folder / "out.npz") as results:
        return dict(results)


@pytest.mark.parametrize("name", cases())
def test_vllm_gives_the_same_scales_and_values(launchers: Launchers, upstream: dict[str, Array], name: str) -> None:
    x, g, _ = cases()[name]
    codes, scales = launchers.quantize(x, g, rule="vllm")
    np.testing.assert_array_equal(scales.view(E4M3).astype(np.float32), upstream[f"{name}:vllm-scale"])
    # Where the scale underflows to zero, the reference multiplies by 1e-8 and the kernels by zero: the same but for
    # values beyond 2.5e7, which vLLM's own test does not have either.
    kept = np.repeat(scales != 0, 16, axis=1) | (np.abs(x.astype(np.float32)) < 2.5e7)
    np.testing.assert_array_equal(E2M1_VALUES[unpack(codes)][kept], upstream[f"{name}:vllm-values"][kept])


@pytest.mark.parametrize("name", cases())
def test_modelopt_gives_the_same_bits(launchers: Launchers, upstream: dict[str, Array], name: str) -> None:
    x, _, g2 = cases()[name]
    codes, scales = launchers.quantize(x, g2, rule="modelopt")
    np.testing.assert_array_equal(scales, upstream[f"{name}:modelopt-scale"])
    np.testing.assert_array_equal(codes, upstream[f"{name}:modelopt-codes"])
