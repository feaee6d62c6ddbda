"""What vLLM's own code makes of a quantized model: close to the original, and less so with scales that are made up."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.quantize.conftest import Quantize
from tests.serve.conftest import serving  # noqa: F401 - a fixture

from sparkwright.checkpoint.repair import Actions, repair_into
from sparkwright.run import run

if TYPE_CHECKING:
    from tests.quantize.conftest import Models, Warm

# Measured: 0.074 with calibrated scales (0.23 at most), 0.040 with attention in FP8, 0.30 with scales of 1.0. Seeds are
# fixed.
BOUND = 0.1


def _distance(one: list[float], other: list[float]) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


@pytest.mark.quantizes
def test_calibrated_scales_serve_better_than_made_up_ones(
    quantizing: "Warm",
    quantize: Quantize,
    models: "Models",
    serving: Path,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    # Inner activations are small here, as they are in real models: 1.0 is far from their scale.
    base = models("llama", "--skew", "64")
    calibrated, mixed, uncalibrated, ones = (
        tmp_path / name for name in ("calibrated", "mixed", "uncalibrated", "ones")
    )
    quantize(base, calibrated)
    quantize(base, mixed, "--attention", "fp8")
    quantizing.run("make_checkpoint.py", base, uncalibrated, "--uncalibrated")
    repair_into(uncalibrated, ones, Actions(set_input_scale=1.0))
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HOME": str(tmp_path),
    }
    script = Path(__file__).with_name("logprobs.py")
    answer = run([serving / "bin/python", script, base, calibrated, mixed, ones], env=environment)
    found: dict[str, list[float]] = json.loads(answer.splitlines()[-1])
    good, better, bad = (_distance(found[str(base)], found[str(one)]) for one in (calibrated, mixed, ones))
    assert 0.001 < better < good < BOUND
    assert bad > 2 * good
