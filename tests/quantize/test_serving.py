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

# Measured with calibrated scales: 0.074 (0.23 at most); with scales of 1.0: 0.30. The seeds are fixed.
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
    calibrated, uncalibrated, ones = (tmp_path / name for name in ("calibrated", "uncalibrated", "ones"))
    quantize(base, calibrated)
    quantizing.run("make_checkpoint.py", base, uncalibrated, "--uncalibrated")
    repair_into(uncalibrated, ones, Actions(set_input_scale=1.0))
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HOME": str(tmp_path),
    }
    script = Path(__file__).with_name("logprobs.py")
    answer = run([serving / "bin/python", script, base, calibrated, ones], env=environment)
    found: dict[str, list[float]] = json.loads(answer.splitlines()[-1])
    good, bad = (_distance(found[str(base)], found[str(one)]) for one in (calibrated, ones))
    assert 0.001 < good < BOUND
    assert bad > 2 * good
