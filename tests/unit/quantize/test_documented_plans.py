"""The table of docs/quantize.md is what --plan says of models of these shapes."""

import math
from pathlib import Path

import pytest

from sparkwright.checkpoint.headers import Tensor
from sparkwright.paths import CHECKOUT
from sparkwright.quantize.options import Calibration, Options
from sparkwright.quantize.plan import make_plan
from sparkwright.quantize.source import Source

TEXT = (CHECKOUT / "docs/quantize.md").read_text(encoding="utf-8")
# hidden size, width of an MLP, layers, heads and heads of keys of 128 values each, vocabulary, experts and how many of
# them a token goes to
SHAPES = {
    "Llama 3.1 8B": (4096, 14336, 32, 32, 8, 128256, 0, 0),
    "Qwen3 32B": (5120, 25600, 64, 64, 8, 151936, 0, 0),
    "Mistral Large 123B": (12288, 28672, 88, 96, 8, 32768, 0, 0),
    "Qwen3 235B-A22B": (4096, 1536, 94, 64, 4, 151936, 128, 8),
}


def _source(
    hidden: int, wide: int, layers: int, heads: int, keys: int, vocabulary: int, experts: int, used: int
) -> Source:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    for number in range(layers):
        layer = f"model.layers.{number}"
        shapes |= {f"{layer}.self_attn.{one}_proj.weight": (128 * keys, hidden) for one in "kv"}
        shapes[f"{layer}.self_attn.q_proj.weight"] = (128 * heads, hidden)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, 128 * heads)
        for mlp in [f"{layer}.mlp.experts.{one}" for one in range(experts)] or [f"{layer}.mlp"]:
            shapes |= {f"{mlp}.{one}_proj.weight": (wide, hidden) for one in ("gate", "up")}
            shapes[f"{mlp}.down_proj.weight"] = (hidden, wide)
        if experts:
            shapes[f"{layer}.mlp.gate.weight"] = (experts, hidden)
        shapes |= {f"{layer}.{one}_layernorm.weight": (hidden,) for one in ("input", "post_attention")}
    tensors = {
        name: Tensor(name=name, dtype="BF16", shape=shape, path=Path("none"), offset=0, nbytes=2 * math.prod(shape))
        for name, shape in shapes.items()
    }
    return Source(
        root=Path("/none"),
        config={"dtype": "bfloat16"},
        text={
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "intermediate_size": 12288 if experts else wide,  # mixtures name the width of their dense layers
            **({"num_experts": experts, "num_experts_per_tok": used} if experts else {}),
        },
        tensors=tensors,
    )


@pytest.mark.parametrize("name", SHAPES)
def test_the_documented_numbers_are_those_of_the_plan(name: str, tmp_path: Path) -> None:
    options = Options(source=Path("/none"), output=tmp_path / "out", calibration=Calibration(data=""))
    plan = make_plan(_source(*SHAPES[name]), options)
    gigabytes = [f"{one / 1e9:.1f} GB" for one in (plan.memory, plan.scratch, plan.output, plan.hidden_states)]
    row = [name, str(plan.layers), f"{plan.largest_layer / 1e9:.2f} GB", *gigabytes, f"{plan.flop / 1e15:.1f} PFLOP"]
    line = next(one for one in TEXT.splitlines() if one.startswith(f"| {name} |"))
    assert [cell.strip() for cell in line.strip("|").split("|")] == row


@pytest.mark.parametrize("name", SHAPES)
def test_two_layers_one_sample_and_two_gigabytes_are_enough(name: str, tmp_path: Path) -> None:
    """However many layers there are."""
    options = Options(source=Path("/none"), output=tmp_path / "out", calibration=Calibration(data=""))
    plan = make_plan(_source(*SHAPES[name]), options)
    assert plan.memory <= 2 * plan.largest_layer + plan.window + 2e9
