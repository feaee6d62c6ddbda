"""mtp-nvfp4-exclusion: MTP layers are quantized exactly when the checkpoint quantized them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from tests.patches.upstream_code import extract, modelopt_config, patched_files

pytestmark = pytest.mark.sources

NAME = "mtp-nvfp4-exclusion"
MODELS = "vllm/model_executor/models"
QWEN = {"qwen3_next_mtp.py": "Qwen3NextMultiTokenPredictor", "qwen3_5_mtp.py": "Qwen3_5MultiTokenPredictor"}

PUBLISHED = ["lm_head", "model.layers.0.linear_attn*", "mtp.layers.0*"]
"""As NVIDIA's Qwen3-Next and Qwen3.5 NVFP4 checkpoints list it: the MTP layer, but not mtp.fc."""
QUANTIZED_MTP = ["lm_head", "model.layers.0.linear_attn*"]
PARTLY_QUANTIZED_MTP = ["lm_head", "mtp.layers.0.self_attn*"]

Built = Mapping[str, object]


class _Module:
    """Stands for torch.nn.Module."""


def _is_quantized(layer: Built) -> bool:
    """As ModelOptQuantConfigBase.get_quant_method decides it from what the layer was given."""
    config: Any = layer["quant_config"]
    return config is not None and not config.is_layer_excluded(layer.get("prefix", ""))


def _fc(tree: Path, file: str, config: SimpleNamespace | None) -> Built:
    """What the real constructor of a Qwen MTP branch gives mtp.fc."""
    built: list[Built] = []

    def linear(*_: object, **given: object) -> None:
        built.append(given)

    predictor = extract(
        tree / MODELS / file,
        QWEN[file],
        nn=SimpleNamespace(Module=_Module),
        ColumnParallelLinear=linear,
        MultiTokenPredictor=_Module,
    )
    hf = MagicMock(num_hidden_layers=48, num_nextn_predict_layers=1, mtp_num_hidden_layers=1)
    model = SimpleNamespace(hf_config=hf, hf_text_config=hf)
    predictor(vllm_config=MagicMock(quant_config=config, model_config=model), prefix="mtp")
    assert [layer["prefix"] for layer in built] == ["mtp.fc"]
    return built[0]


def _step_head(tree: Path, config: SimpleNamespace) -> Built:
    """What the real constructors of a Step MTP layer give its head."""
    built: list[Built] = []

    def head(*_: object, **given: object) -> None:
        built.append(given)

    file = tree / MODELS / "step3p5_mtp.py"
    nn = SimpleNamespace(Module=_Module, Linear=MagicMock())
    shared_head = extract(file, "SharedHead", nn=nn, ParallelLMHead=head)
    layer = extract(file, "Step3p5AMultiTokenPredictorLayer", nn=nn, SharedHead=shared_head)
    layer(MagicMock(quant_config=config), prefix="model.layers.45")
    return built[0]


@pytest.mark.parametrize(
    ("version", "file"),
    [
        ("0.16.0", "qwen3_next_mtp.py"),
        ("0.19.1", "qwen3_next_mtp.py"),
        ("0.19.1", "qwen3_5_mtp.py"),
        ("0.24.0", "qwen3_next_mtp.py"),
    ],
)
def test_fc_is_in_16_bits_when_all_mtp_layers_are(
    version: str,
    file: str,
    vllm_tree: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    before = vllm_tree(version)
    after = patched_files(before, version, NAME, tmp_path)
    published = modelopt_config(before, PUBLISHED)
    assert published.is_layer_excluded("mtp.layers.0.self_attn.qkv_proj")
    assert _is_quantized(_fc(before, file, published))
    assert not _is_quantized(_fc(after, file, published))
    for kept in (QUANTIZED_MTP, PARTLY_QUANTIZED_MTP):
        assert _is_quantized(_fc(after, file, modelopt_config(before, kept)))
    other_format = SimpleNamespace(get_name=lambda: "compressed-tensors")
    assert _fc(after, file, other_format)["quant_config"] is other_format
    assert _fc(after, file, None)["quant_config"] is None


def test_the_head_of_step_is_quantized_when_its_layer_is(vllm_tree: Callable[[str], Path], tmp_path: Path) -> None:
    before = vllm_tree("0.24.0")
    after = patched_files(before, "0.24.0", NAME, tmp_path)
    bf16_mtp = modelopt_config(before, ["lm_head", "model.layers.45*"])
    nvfp4_mtp = modelopt_config(before, ["lm_head"])
    assert _is_quantized(_step_head(before, bf16_mtp))
    assert not _is_quantized(_step_head(after, bf16_mtp))
    assert _is_quantized(_step_head(after, nvfp4_mtp))


def test_the_mended_release_decides_alike(vllm_tree: Callable[[str], Path]) -> None:
    tree = vllm_tree("0.33.0")
    for file in QWEN:
        assert not _is_quantized(_fc(tree, file, modelopt_config(tree, PUBLISHED)))
    assert not _is_quantized(_step_head(tree, modelopt_config(tree, ["model.layers.45*"])))
