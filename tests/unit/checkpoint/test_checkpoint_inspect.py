"""What `inspect` counts: weights in formats that it does not judge, experts under other names; what it refuses."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.unit.checkpoint.holes import Tensors, bf16, write

from sparkwright.checkpoint.checkpoint import read_checkpoint
from sparkwright.checkpoint.inspection import inspect
from sparkwright.checkpoint.roofline import costs
from sparkwright.checkpoint.verify import verify_headers

Linear = Callable[[str, int, int], Tensors]


def packed(bits: int) -> Linear:
    """compressed-tensors pack-quantized: so many integers in 32 bits along the input."""
    return lambda name, rows, columns: {
        f"{name}.weight_packed": ("I32", (rows, columns * bits // 32)),
        f"{name}.weight_scale": ("BF16", (rows, columns // 128)),
        f"{name}.weight_shape": ("I64", (2,)),
    }


def awq(name: str, rows: int, columns: int) -> Tensors:
    return {
        f"{name}.qweight": ("I32", (columns, rows // 8)),
        f"{name}.qzeros": ("I32", (columns // 128, rows // 8)),
        f"{name}.scales": ("F16", (columns // 128, rows)),
    }


def gptq(bits: int) -> Linear:
    return lambda name, rows, columns: {
        f"{name}.qweight": ("I32", (columns * bits // 32, rows)),
        f"{name}.qzeros": ("I32", (columns // 128, rows * bits // 32)),
        f"{name}.scales": ("F16", (columns // 128, rows)),
        f"{name}.g_idx": ("I32", (columns,)),
    }


def int8(name: str, rows: int, columns: int) -> Tensors:
    return {f"{name}.weight": ("I8", (rows, columns)), f"{name}.weight_scale": ("BF16", (rows, 1))}


def groups(*bits: int) -> dict[str, object]:
    each = {
        f"group_{place}": {"weights": {"num_bits": one, "type": "int"}, "targets": ["Linear"]}
        for place, one in enumerate(bits)
    }
    return {"quant_method": "compressed-tensors", "ignore": ["lm_head", "re:.*mlp.gate$"], "config_groups": each}


def model(linear: Linear) -> Tensors:
    """A layer of Qwen3-30B-A3B with 8 experts."""
    tensors = bf16("model.embed_tokens", 151936, 2048) | bf16("lm_head", 151936, 2048) | bf16("model.norm", 2048)
    layer = "model.layers.0"
    for name, shape in {"q": (4096, 2048), "k": (512, 2048), "v": (512, 2048), "o": (2048, 4096)}.items():
        tensors |= linear(f"{layer}.self_attn.{name}_proj", *shape)
    tensors |= bf16(f"{layer}.mlp.gate", 8, 2048)
    for expert in range(8):
        for name, shape in {"gate": (768, 2048), "up": (768, 2048), "down": (2048, 768)}.items():
            tensors |= linear(f"{layer}.mlp.experts.{expert}.{name}_proj", *shape)
    return tensors


def seen(root: Path, linear: Linear, quantization: Mapping[str, object]) -> dict[str, Any]:
    config = {
        "num_hidden_layers": 1,
        "hidden_size": 2048,
        "vocab_size": 151936,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts_per_tok": 2,
        "quantization_config": quantization,
    }
    write(root / "model", model(linear), config)
    assert [one for one in verify_headers(root / "model").findings if one.rule.severity == "error"] == []
    return inspect(read_checkpoint(root / "model"))


PARAMETERS = 2 * 151936 * 2048 + 2048 + (4096 + 512 + 512 + 4096) * 2048 + 8 * 2048 + 8 * 3 * 768 * 2048


@pytest.mark.parametrize(
    ("linear", "quantization", "name"),
    [
        (packed(4), groups(4), "compressed-tensors INT4 pack-quantized"),
        (packed(8), groups(8), "compressed-tensors INT8 pack-quantized"),
        (awq, {"quant_method": "awq", "bits": 4}, "AWQ or GPTQ INT4"),
        (gptq(4), {"quant_method": "gptq", "bits": 4}, "AWQ or GPTQ INT4"),
        (gptq(8), {"quant_method": "gptq", "bits": 8}, "AWQ or GPTQ INT8"),
        (int8, groups(8), "INT8"),
    ],
    ids=["packed-4", "packed-8", "awq", "gptq-4", "gptq-8", "int8"],
)
def test_integer_formats_are_counted(
    tmp_path: Path, linear: Linear, quantization: Mapping[str, object], name: str
) -> None:
    found = seen(tmp_path, linear, quantization)
    assert (found["format"], found["parameters"]) == (name, PARAMETERS)
    bounds = found["roofline"]
    assert bounds["bytes_per_token"]["kv_per_context_token"]["bf16"] == 2 * 512 * 2
    assert bounds["experts"] == {"number": 8, "chosen": 2}
    assert bounds["notes"] == []


def test_parameters_of_an_unknown_format_are_not_guessed(tmp_path: Path) -> None:
    found = seen(tmp_path, packed(4), groups(4, 8))
    assert (found["format"], found["parameters"], found["bits_per_weight"]) == ("unknown", None, None)
    assert {kind["parameters"] for kind in found["kinds"] if kind["stored_as"] == "unknown"} == {None}
    # The sizes are those of the files, and the config says the heads.
    assert found["roofline"]["bytes_per_token"]["kv_per_context_token"]["bf16"] == 2 * 4 * 128 * 2
    assert found["roofline"]["experts"] == {"number": 8, "chosen": 2}
    assert sum(kind["bytes"] for kind in found["kinds"]) == found["roofline"]["resident_bytes"]


def test_stacked_experts_under_other_names(tmp_path: Path) -> None:
    """Granite 4 has no module called experts, DBRX stacks them along the rows."""
    granite = bf16("model.layers.0.block_sparse_moe.input_linear", 72, 1536, 4096)
    granite |= bf16("model.layers.0.block_sparse_moe.output_linear", 72, 4096, 768)
    granite |= bf16("model.layers.0.block_sparse_moe.router.layer", 72, 4096)
    dbrx = bf16("transformer.blocks.0.ffn.experts.mlp.w1", 72 * 768, 4096)
    config = {"num_hidden_layers": 1, "num_local_experts": 72, "num_experts_per_tok": 10}
    router = 72 * 4096 * 2
    for name, tensors, rest in (("granite", granite, router), ("dbrx", dbrx, 0)):
        found = costs(read_checkpoint(write(tmp_path / name, tensors, config)))
        assert (found.experts, found.chosen, found.fixed) == (72, 10, rest)
        routed = found.resident - rest
        assert found.weights() == pytest.approx(rest + routed * 10 / 72)


@pytest.mark.parametrize("config", [{"num_local_experts": 8}, {"num_experts_per_tok": 2}], ids=["choice", "number"])
def test_experts_of_which_all_are_counted_are_said(tmp_path: Path, config: dict[str, object]) -> None:
    name = "model.layers.0.ffn.experts.mlp.w1"
    found = costs(read_checkpoint(write(tmp_path / "model", bf16(name, 8 * 64, 32), config)))
    assert found.weights() == 8 * 64 * 32 * 2
    assert any("expert" in note for note in found.notes)
