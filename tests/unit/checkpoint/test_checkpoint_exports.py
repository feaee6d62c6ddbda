"""Headers and configs as modelopt 0.43 and 0.47 and llm-compressor 0.14 wrote them for one-layer models.

The files are the tools' own output without the values: names, types, shapes and JSON, as text.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.checkpoint.holes import write_shard

from sparkwright.checkpoint.inspection import format_name
from sparkwright.checkpoint.verify import verify_headers

EXPORTS = Path(__file__).parent / "exports"
FORMATS = {
    "llama-llmcompressor-0.14-fp8": "compressed-tensors FP8",
    "llama-llmcompressor-0.14-mxfp4": "compressed-tensors mxfp4-pack-quantized",
    "llama-llmcompressor-0.14-nvfp4": "compressed-tensors nvfp4-pack-quantized",
    "llama-llmcompressor-0.14-nvfp4a16": "compressed-tensors nvfp4-pack-quantized, weights only (W4A16)",
    "llama-modelopt-0.43-nvfp4": "modelopt NVFP4",
    "llama-modelopt-0.47-fp8": "modelopt FP8",
    "llama-modelopt-0.47-nvfp4": "modelopt NVFP4",
    "moe-llmcompressor-0.14-nvfp4": "compressed-tensors nvfp4-pack-quantized",
    "moe-modelopt-0.43-nvfp4": "modelopt NVFP4",
    "moe-modelopt-0.47-nvfp4": "modelopt NVFP4",
}


def load(name: str) -> dict[str, Any]:
    return json.loads((EXPORTS / f"{name}.json").read_text())  # type: ignore[no-any-return]


def write(root: Path, export: dict[str, Any], *, without: str = "") -> Path:
    """The export as a folder, with holes for values; `without` leaves one tensor out."""
    root.mkdir(exist_ok=True)
    kept = {name: one for name, one in export["tensors"].items() if name != without}
    write_shard(root / "model.safetensors", kept)
    for file in ("config", "hf_quant_config"):
        if file in export:
            (root / f"{file}.json").write_text(json.dumps(export[file]))
    (root / "tokenizer.json").write_text("{}")
    (root / "chat_template.jinja").write_text("{{ messages }}")
    return root


def test_every_export_is_looked_at() -> None:
    assert {path.stem for path in EXPORTS.glob("*.json")} == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_good_exports_are_clean_and_named(tmp_path: Path, name: str) -> None:
    result = verify_headers(write(tmp_path / "model", load(name)))
    assert result.findings == ()
    assert format_name(result.checkpoint) == FORMATS[name]


def deepen(export: dict[str, Any], layers: int) -> dict[str, Any]:
    """The export with copies of its one layer, so that a layer has others of its kind."""
    first = "model.layers.0."
    copies = {
        name.replace(first, f"model.layers.{layer}."): tensor
        for name, tensor in export["tensors"].items()
        for layer in range(layers if name.startswith(first) else 1)
    }
    config = export["config"] | {"num_hidden_layers": layers, "layer_types": ["full_attention"] * layers}
    ignored = export["config"]["quantization_config"]["ignore"]
    config["quantization_config"] |= {
        "ignore": [one.replace(".0.", f".{layer}.") for one in ignored for layer in range(layers)]
    }
    return {"tensors": copies, "config": config}


@pytest.mark.parametrize("name", FORMATS)
def test_no_tensor_can_be_lost_unnoticed(tmp_path: Path, name: str) -> None:
    export = deepen(load(name), 3)
    assert verify_headers(write(tmp_path / "model", export)).findings == ()
    candidates = [one for one in export["tensors"] if "layers." not in one or "layers.1." in one]
    assert len(candidates) >= 19
    for tensor in candidates:
        findings = verify_headers(write(tmp_path / "model", export, without=tensor)).findings
        module = tensor.rpartition(".")[0]
        subjects = [subject for one in findings for subject in one.subjects]
        outside = {"model.embed_tokens": "model: no embedding", "model.norm": "model: no final norm"}
        assert any(outside.get(module, module) in subject for subject in subjects), tensor
