"""Precision chosen by module, and calibration data of other kinds: each as modelopt's own export gives it."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.quantize.conftest import LENGTH, SAMPLES, Quantize, settings, tensors

from sparkwright.checkpoint.verify import verify

if TYPE_CHECKING:
    from tests.quantize.conftest import Models, Warm

pytestmark = pytest.mark.quantizes

COUNTS = ("--samples", str(SAMPLES), "--length", str(LENGTH))
MIXTURE = ("qwen3_moe", "--layers", "2")


@pytest.fixture(scope="module")
def hybrid(models: "Models", quantize: Quantize, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts with experts in NVFP4, attention in FP8 and a dense layer in BF16."""
    output = tmp_path_factory.mktemp("hybrid") / "made"
    quantize(models(*MIXTURE), output, "--experts-only", "--attention", "fp8")
    return output


def test_experts_in_nvfp4_and_attention_in_fp8_as_modelopt_has_them(
    quantizing: "Warm", models: "Models", hybrid: Path, data: Path, tmp_path: Path
) -> None:
    quantizing.run("make_checkpoint.py", models(*MIXTURE), tmp_path / "made", "--data", data, *COUNTS, "--hybrid")
    assert tensors(hybrid) == tensors(tmp_path / "made")
    for name in ("config.json", "hf_quant_config.json", "generation_config.json"):
        assert settings(hybrid, name) == settings(tmp_path / "made", name)


def test_a_mixed_result_says_what_each_module_is(models: "Models", hybrid: Path) -> None:
    result = verify(hybrid, against=models(*MIXTURE), sample=0)
    assert result.findings == ()
    assert result.checkpoint.quant is not None
    assert result.checkpoint.quant.algorithm == "MIXED_PRECISION"
    stored = {
        module.name: module.encoding.name
        for module in result.checkpoint.modules.values()
        if module.encoding is not None and module.is_linear
    }
    layer = "model.layers.1"
    assert stored[f"{layer}.self_attn.q_proj"] == "FP8"
    assert "NVFP4" in stored[f"{layer}.mlp.experts.0.up_proj"]
    # The first layer is dense.
    assert result.checkpoint.modules["model.layers.0.mlp.up_proj"].is_quantized is False
    assert result.checkpoint.modules[f"{layer}.mlp.gate"].is_quantized is False


def test_what_is_left_out_and_the_cache_are_as_modelopt_has_them_by_the_same_patterns(
    quantizing: "Warm", models: "Models", quantize: Quantize, data: Path, tmp_path: Path
) -> None:
    source, words = models("llama", "--layers", "2"), ("--exclude", "*.mlp.down_proj*", "--kv-cache", "fp8")
    quantize(source, tmp_path / "by-layer", *words)
    quantizing.run("make_checkpoint.py", source, tmp_path / "at-once", "--data", data, *COUNTS, *words)
    found = tensors(tmp_path / "by-layer")
    assert found == tensors(tmp_path / "at-once")
    assert found["model.layers.1.mlp.down_proj.weight"][0] == "BF16"
    assert "model.layers.1.self_attn.k_proj.k_scale" in found
    for name in ("config.json", "hf_quant_config.json"):
        assert settings(tmp_path / "by-layer", name) == settings(tmp_path / "at-once", name)
    assert verify(tmp_path / "by-layer", against=source).findings == ()


def test_an_expert_that_no_token_reached_has_the_largest_range_of_its_layer(
    quantizing: "Warm", models: "Models", data: Path, tmp_path: Path
) -> None:
    """modelopt gives all experts of a layer one range of inputs: eight tokens reach two of 48 experts each."""
    source, few = models(*MIXTURE, "--experts", "48"), ("--samples", "1", "--length", "8")
    words = ("quantize", source, tmp_path / "by-layer", "--data", data, *few, "--device", "cpu")
    quantizing.run("sparkwright", *words)
    quantizing.run("make_checkpoint.py", source, tmp_path / "at-once", "--data", data, *few)
    found = tensors(tmp_path / "by-layer")
    assert found == tensors(tmp_path / "at-once")
    experts = "model.layers.1.mlp.experts"
    assert len({found[f"{experts}.{one}.down_proj.input_scale"][2] for one in range(48)}) == 1
    assert verify(tmp_path / "by-layer").findings == ()
