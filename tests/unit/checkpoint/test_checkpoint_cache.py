"""What is cached of a token, worked out by hand from public facts, for every model of `recipes/` and other kinds."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.unit.checkpoint.holes import Tensors, bf16, nvfp4, write
from tests.unit.checkpoint.models import RECIPES, attention

from sparkwright.checkpoint.checkpoint import read_checkpoint
from sparkwright.checkpoint.roofline import Costs, costs, roofline
from sparkwright.checkpoint.verify import verify_headers
from sparkwright.paths import CHECKOUT

# Bytes in BF16 for a token, then for one beyond all windows: layers * (keys + values) * heads * width * 2.
CACHED = {
    "anubis-pro-105b-nvfp4": (120 * 2 * 8 * 128 * 2, 120 * 2 * 8 * 128 * 2),
    "behemoth-x-123b-nvfp4": (88 * 2 * 8 * 128 * 2, 88 * 2 * 8 * 128 * 2),
    "gemma-4-26b-a4b-nvfp4": (25 * 2 * 8 * 256 * 2 + 5 * 2 * 2 * 512 * 2, 5 * 2 * 2 * 512 * 2),
    "gpt-oss-120b": (36 * 2 * 8 * 64 * 2, 18 * 2 * 8 * 64 * 2),
    "nemotron-3.5-lightning-30b-a3b-nvfp4": (6 * 2 * 2 * 128 * 2, 6 * 2 * 2 * 128 * 2),
    "nemotron-cascade-2-30b-a3b-nvfp4": (6 * 2 * 2 * 128 * 2, 6 * 2 * 2 * 128 * 2),
    "qwen3-32b-nvfp4": (64 * 2 * 8 * 128 * 2, 64 * 2 * 8 * 128 * 2),
    "qwen3-8b-nvfp4": (36 * 2 * 8 * 128 * 2, 36 * 2 * 8 * 128 * 2),
    "qwen3-next-80b-a3b-nvfp4": (12 * 2 * 2 * 256 * 2, 12 * 2 * 2 * 256 * 2),
    "qwen3-next-80b-a3b-nvfp4-mtp": (12 * 2 * 2 * 256 * 2, 12 * 2 * 2 * 256 * 2),
    "qwen3.6-27b-nvfp4": (16 * 2 * 4 * 256 * 2, 16 * 2 * 4 * 256 * 2),
    "qwen3.6-35b-a3b-nvfp4": (10 * 2 * 2 * 256 * 2, 10 * 2 * 2 * 256 * 2),
}
# Bytes of recurrent state of a sequence: layers * heads * width * width of the state * 4.
STATES = {
    "nemotron-3.5-lightning-30b-a3b-nvfp4": 23 * 64 * 64 * 128 * 4,
    "nemotron-cascade-2-30b-a3b-nvfp4": 23 * 64 * 64 * 128 * 4,
    "qwen3-next-80b-a3b-nvfp4": 36 * 32 * 128 * 128 * 4,
    "qwen3-next-80b-a3b-nvfp4-mtp": 36 * 32 * 128 * 128 * 4,
    "qwen3.6-27b-nvfp4": 48 * 48 * 128 * 128 * 4,
    "qwen3.6-35b-a3b-nvfp4": 30 * 32 * 128 * 128 * 4,
}


def read(root: Path, tensors: Tensors, config: Mapping[str, object]) -> Costs:
    root.mkdir(exist_ok=True)
    return costs(read_checkpoint(write(root / "model", tensors, config)))


def test_every_recipe_has_its_figures() -> None:
    names = {path.stem for path in (CHECKOUT / "recipes").glob("*.yaml")}
    assert set(RECIPES) == set(CACHED) == names


@pytest.mark.parametrize("name", RECIPES)
def test_models_of_the_recipes(tmp_path: Path, name: str) -> None:
    checked = verify_headers(write(tmp_path / "model", *RECIPES[name]()))
    assert checked.findings == ()
    found = roofline(checked.checkpoint)
    read = found["bytes_per_token"]
    assert (read["kv_per_context_token"]["bf16"], read["kv_beyond_windows"]["bf16"]) == CACHED[name]
    assert read["state"] == 2 * STATES.get(name, 0)
    assert found["notes"] == []


def test_one_tensor_for_query_key_and_value(tmp_path: Path) -> None:
    """Phi-4 14B."""
    tensors: Tensors = {}
    for layer in range(40):
        tensors |= nvfp4(f"model.layers.{layer}.self_attn.qkv_proj", 7680, 5120)
        tensors |= nvfp4(f"model.layers.{layer}.self_attn.o_proj", 5120, 5120)
    config = {"num_hidden_layers": 40, "hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads": 10}
    found = read(tmp_path, tensors, config)
    assert found.cache_bytes(1, value_bytes=2) == 204_800
    assert found.notes == ()


def test_a_config_that_does_not_fit_the_tensor_tells_nothing(tmp_path: Path) -> None:
    """Falcon 7B has one head of keys, but no field that says so; GPT-2 has as many as of queries, and inputs first."""
    falcon = bf16("transformer.h.0.self_attention.query_key_value", 4672, 4544)
    config = {"n_layer": 1, "hidden_size": 4544, "n_head": 71}
    assert read(tmp_path / "falcon", falcon, config).cache is None
    assert read(tmp_path / "one", falcon, config | {"num_kv_heads": 1}).cache_bytes(1, value_bytes=2) == 2 * 64 * 2
    gpt = bf16("h.0.attn.c_attn", 768, 2304)
    found = read(tmp_path / "gpt", gpt, {"n_layer": 1, "n_embd": 768, "n_head": 12})
    assert found.cache_bytes(1, value_bytes=2) == 2 * 768 * 2


def test_what_is_not_known_is_not_zero(tmp_path: Path) -> None:
    tensors = bf16("model.layers.0.self_attn.qkv_proj", 192, 64) | bf16("model.layers.0.self_attn.o_proj", 64, 64)
    checkpoint = read_checkpoint(write(tmp_path / "model", tensors, {"num_hidden_layers": 1}))
    found = roofline(checkpoint)
    assert found["bytes_per_token"]["kv_per_context_token"] == {"bf16": None, "fp8": None}
    assert all((one["bound"] is None) == (one["context"] > 0) for one in found["tokens_per_second"])
    assert all(one["weights_fit"] and one["context"] is None for one in found["fits"])
    assert "model.layers.0.self_attn" in found["notes"][0]


@pytest.mark.parametrize(
    "tensors",
    [bf16("model.layers.0.self_attn.strange_proj", 192, 64), bf16("model.layers.0.mlp.up_proj", 64, 64)],
    ids=["unknown attention", "none"],
)
def test_attention_that_is_not_recognized_is_said(tmp_path: Path, tensors: Tensors) -> None:
    found = read(tmp_path, tensors, {"num_hidden_layers": 1})
    assert found.cache is None
    assert "unknown" in found.notes[0]


def test_names_of_mistrals_own_format(tmp_path: Path) -> None:
    tensors = bf16("layers.0.attention.wq", 4096, 64) | bf16("layers.0.attention.wk", 1024, 64)
    tensors |= bf16("layers.0.attention.wv", 1024, 64)
    write(tmp_path / "model", tensors, {})
    (tmp_path / "model/config.json").unlink()
    found = costs(read_checkpoint(tmp_path / "model"))
    assert found.cache_bytes(1, value_bytes=2) == 2 * 1024 * 2
    assert any("no config.json" in note for note in found.notes)


def test_the_first_mamba_says_its_width_itself(tmp_path: Path) -> None:
    prefix = "model.layers.0.mamba"
    tensors = bf16(f"{prefix}.in_proj", 16384, 4096) | bf16(f"{prefix}.out_proj", 4096, 8192)
    tensors[f"{prefix}.A_log"] = ("F32", (8192, 16))
    found = read(tmp_path, tensors, {})
    assert found.state == 8192 * 16 * 4
    assert found.cache_bytes(1, value_bytes=2) == 0


def test_a_state_of_unknown_width_is_said(tmp_path: Path) -> None:
    tensors = bf16("model.layers.0.mixer.out_proj", 64, 128)
    tensors["model.layers.0.mixer.A_log"] = ("F32", (2,))
    found = read(tmp_path, tensors, {})
    assert found.state is None
    assert "recurrent state" in found.notes[0]


def test_layers_that_use_the_cache_of_others(tmp_path: Path) -> None:
    tensors: Tensors = {}
    for layer in range(4):
        tensors |= attention(f"model.layers.{layer}.self_attn", 64, heads=2, kv_heads=1, width=32)
    found = read(tmp_path, tensors, {"num_hidden_layers": 4, "num_kv_shared_layers": 3, "head_dim": 32})
    assert found.cache_bytes(1, value_bytes=2) == 2 * 32 * 2


def windows(root: Path, layers: int, config: dict[str, object]) -> tuple[list[bool], tuple[str, ...]]:
    tensors: Tensors = {}
    for layer in range(layers):
        tensors |= attention(f"model.layers.{layer}.self_attn", 64, heads=2, kv_heads=1, width=32)
    found = read(root, tensors, {"num_hidden_layers": layers, "head_dim": 32, **config})
    assert found.cache is not None
    return [layer.window is not None for layer in found.cache], found.notes


@pytest.mark.parametrize(
    ("config", "slides"),
    [
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, "11111011"),
        ({"model_type": "gemma2"}, "10101010"),
        ({"model_type": "mistral"}, "11111111"),
        ({"sliding_window_pattern": 4}, "11101110"),
        ({"sliding_window_pattern": "LLLG"}, "11101110"),
        ({"layer_types": ["sliding_attention", "full_attention"] * 4}, "10101010"),
        ({"layer_types": ["chunked_attention"] * 3 + ["full_attention"]}, "11100000"),
        ({"max_window_layers": 5, "use_sliding_window": True}, "00000111"),
        ({"max_window_layers": 5}, "00000000"),
        ({"use_sliding_window": False}, "00000000"),
        ({"sliding_window": 0, "model_type": "mistral"}, "00000000"),
    ],
    ids=str,
)
def test_which_layers_have_a_window(tmp_path: Path, config: dict[str, object], slides: str) -> None:
    found, notes = windows(tmp_path, 8, {"sliding_window": 1024, **config})
    assert "".join(str(int(one)) for one in found) == slides
    assert notes == ()


def test_a_window_of_unknown_layers_is_said(tmp_path: Path) -> None:
    found, notes = windows(tmp_path, 4, {"sliding_window": 1024})
    assert found == [False] * 4
    assert "counted in full" in notes[0]


def test_what_fits_has_an_end_only_when_the_cache_grows(tmp_path: Path) -> None:
    tensors = attention("model.layers.0.self_attn", 64, heads=2, kv_heads=1, width=32)
    config: dict[str, object] = {"num_hidden_layers": 1, "head_dim": 32, "sliding_window": 64, "model_type": "mistral"}
    for name, more in {"windows": {}, "grows": {"sliding_window": None}}.items():
        checkpoint = read_checkpoint(write(tmp_path / name, tensors, config | more))
        fits = roofline(checkpoint)["fits"][0]["context"]
        assert (fits is None) == (name == "windows")
    assert fits == pytest.approx(92e9 / 128, rel=0.001)


def test_sparks_divide_heads_and_no_more(tmp_path: Path) -> None:
    heads = attention("model.layers.0.self_attn", 64, heads=4, kv_heads=2, width=32)
    latent = bf16("model.layers.0.self_attn.kv_a_proj_with_mqa", 128, 64)
    for name, tensors, shares in (("heads", heads, (1, 2, 2, 2)), ("latent", latent, (1, 1, 1, 1))):
        checkpoint = read_checkpoint(write(tmp_path / name, tensors, {"num_hidden_layers": 1, "head_dim": 32}))
        found = costs(checkpoint)
        assert [found.cache_bytes(100, value_bytes=1, sparks=one) for one in (1, 2, 3, 4)] == [
            12800 / share for share in shares
        ]
        each = [
            found.longest_context(sparks=one, usable=1e6 + found.resident / one, value_bytes=1) for one in (1, 2, 3, 4)
        ]
        assert each == [int(1e6 * share // 128) for share in shares]


def test_layers_with_heads_of_their_own_width(tmp_path: Path) -> None:
    found = read(tmp_path, *RECIPES["gemma-4-26b-a4b-nvfp4"]())
    assert found.cache is not None
    assert {(layer.window, layer.heads) for layer in found.cache} == {(1024, 8), (None, 2)}


def test_heads_of_unknown_width_are_not_divided(tmp_path: Path) -> None:
    found = read(tmp_path, attention("model.layers.0.self_attn", 64, heads=4, kv_heads=2, width=32), {})
    assert found.cache_bytes(1, value_bytes=1, sparks=2) == 128
    assert "not divided" in found.notes[0]
