"""Sound checkpoints shaped like those of real models, as headers and configs: none has a finding."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.checkpoint.holes import Tensors, bf16, nvfp4
from tests.unit.checkpoint.test_checkpoint_exports import write

from sparkwright.checkpoint.inspection import format_name
from sparkwright.checkpoint.modules import Module, prediction_module
from sparkwright.checkpoint.settings import parse
from sparkwright.checkpoint.verify import verify_headers

Linear = Callable[[str, int, int], Tensors]

HIDDEN, WIDE, VOCABULARY, LAYERS = 64, 96, 128, 4
SIZES = {"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "vocab_size": VOCABULARY}


def packed(name: str, rows: int, columns: int) -> Tensors:
    """NVFP4 as llm-compressor writes it."""
    return {
        f"{name}.weight_packed": ("U8", [rows, columns // 2]),
        f"{name}.weight_scale": ("F8_E4M3", [rows, columns // 16]),
        f"{name}.weight_global_scale": ("F32", [1]),
        f"{name}.input_global_scale": ("F32", [1]),
    }


def packed_weights(name: str, rows: int, columns: int) -> Tensors:
    """NVFP4 without quantized activations (NVFP4A16)."""
    return {key: value for key, value in packed(name, rows, columns).items() if "input" not in key}


def fp8_rows(name: str, rows: int, columns: int) -> Tensors:
    """FP8 with a scale for each row, activations scaled at run time."""
    return {f"{name}.weight": ("F8_E4M3", [rows, columns]), f"{name}.weight_scale": ("BF16", [rows, 1])}


def mistral_fp8(name: str, rows: int, columns: int) -> Tensors:
    """FP8 with one scale for the weight and one for the activations, as Mistral writes it for transformers."""
    scales: Tensors = {f"{name}.{part}": ("BF16", []) for part in ("weight_scale_inv", "activation_scale")}
    return {f"{name}.weight": ("F8_E4M3", [rows, columns])} | scales


def quark_mxfp4(name: str, rows: int, columns: int) -> Tensors:
    return {f"{name}.weight": ("U8", [rows, columns // 2]), f"{name}.weight_scale": ("U8", [rows, columns // 32])}


def attention(prefix: str, linear: Linear) -> Tensors:
    shapes = {"q_proj": (64, HIDDEN), "k_proj": (32, HIDDEN), "v_proj": (32, HIDDEN), "o_proj": (HIDDEN, 64)}
    return join(linear(f"{prefix}.{name}", *shape) for name, shape in shapes.items())


def mlp(prefix: str, linear: Linear) -> Tensors:
    shapes = {"gate_proj": (WIDE, HIDDEN), "up_proj": (WIDE, HIDDEN), "down_proj": (HIDDEN, WIDE)}
    return join(linear(f"{prefix}.{name}", *shape) for name, shape in shapes.items())


def join(parts: Iterable[Tensors]) -> Tensors:
    return {name: tensor for part in parts for name, tensor in part.items()}


def decoder(prefix: str, *parts: Callable[[str, int], Tensors], head: str = "lm_head") -> Tensors:
    """Embedding, final norm, head, and layers of the parts, which get the layer's name and its number."""
    outside = [bf16(f"{prefix}.embed_tokens", VOCABULARY, HIDDEN), bf16(f"{prefix}.norm", HIDDEN)]
    layers = [
        bf16(f"{prefix}.layers.{layer}.input_layernorm", HIDDEN) | part(f"{prefix}.layers.{layer}", layer)
        for layer in range(LAYERS)
        for part in parts
    ]
    return join([*outside, bf16(head, VOCABULARY, HIDDEN) if head else {}, *layers])


def dense(linear: Linear) -> Callable[[str, int], Tensors]:
    return lambda name, _: attention(f"{name}.self_attn", linear) | mlp(f"{name}.mlp", linear)


def group(targets: list[str], bits: int, **more: object) -> dict[str, object]:
    return {"targets": targets, "weights": {"num_bits": bits}, "input_activations": {"num_bits": bits}} | more


def compressed(*ignore: str, **groups: object) -> dict[str, Any]:
    return {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "nvfp4-pack-quantized",
            "ignore": list(ignore),
            "config_groups": groups or {"group_0": group(["Linear"], 4, input_activations={"dynamic": "local"})},
        }
    }


Model = tuple[Tensors, dict[str, Any]]


def qwen3_vl() -> Model:
    vision = "model.visual"
    linears = [f"{vision}.blocks.0.attn.qkv", f"{vision}.blocks.0.attn.proj", f"{vision}.merger.linear_fc1"]
    tensors = decoder("model.language_model", dense(packed))
    tensors |= join(bf16(name, HIDDEN, HIDDEN) for name in linears)
    tensors |= bf16(f"{vision}.pos_embed", 2304, HIDDEN) | bf16(f"{vision}.patch_embed.proj", HIDDEN, 3, 2, 16, 16)
    config = {"architectures": ["Qwen3VLForConditionalGeneration"], "tie_word_embeddings": False}
    return tensors, config | {"text_config": SIZES} | compressed(*linears, "lm_head")


def gemma3() -> Model:
    vision = "model.vision_tower.vision_model"
    linears = [f"{vision}.encoder.layers.0.self_attn.out_proj", f"{vision}.encoder.layers.0.mlp.fc1"]
    tensors = decoder("model.language_model", dense(packed), head="")
    tensors |= join(bf16(name, HIDDEN, HIDDEN) for name in linears)
    tensors |= bf16(f"{vision}.embeddings.position_embedding", 256, HIDDEN)
    tensors |= bf16(f"{vision}.embeddings.patch_embedding", HIDDEN, 3, 14, 14)
    tensors["model.multi_modal_projector.mm_input_projection_weight"] = ("BF16", [HIDDEN, HIDDEN])
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": SIZES}
    return tensors, config | compressed(*linears, "lm_head")


def mixed() -> Model:
    """Weights of the MLP in NVFP4, attention in FP8: each group has its own activations."""
    tensors = decoder(
        "model", lambda name, _: attention(f"{name}.self_attn", fp8_rows) | mlp(f"{name}.mlp", packed_weights)
    )
    dynamic = {"num_bits": 8, "dynamic": True}
    groups = {
        "group_0": group(["re:.*self_attn.*"], 8, format="float-quantized", input_activations=dynamic),
        "group_1": group(["Linear"], 4, format="nvfp4-pack-quantized", input_activations=None),
    }
    return tensors, {"architectures": ["LlamaForCausalLM"], **SIZES, **compressed("lm_head", **groups)}


def ministral3() -> Model:
    tensors = decoder("language_model.model", dense(mistral_fp8), head="language_model.lm_head")
    plain = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    quantization = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    config = {"architectures": ["Mistral3ForConditionalGeneration"], "text_config": SIZES}
    return tensors, config | {"quantization_config": quantization | {"modules_to_not_convert": plain}}


def glm() -> Model:
    """Its router is no Linear for llm-compressor, which therefore does not list it."""
    experts = [f"mlp.experts.{one}" for one in range(2)]
    tensors = decoder(
        "model",
        lambda name, _: attention(f"{name}.self_attn", packed) | bf16(f"{name}.mlp.gate", 2, HIDDEN),
        lambda name, _: join(mlp(f"{name}.{one}", packed) for one in (*experts, "mlp.shared_experts")),
    )
    last = f"model.layers.{LAYERS}"  # predicts further tokens, and has more than the decoder layers have
    outside: dict[str, tuple[int, ...]] = {
        "embed_tokens": (VOCABULARY, HIDDEN),
        "shared_head.head": (VOCABULARY, HIDDEN),
        "eh_proj": (64, 128),
    }
    outside |= dict.fromkeys(("input_layernorm", "enorm", "hnorm", "shared_head.norm"), (HIDDEN,))
    tensors |= join(bf16(f"{last}.{name}", *shape) for name, shape in outside.items())
    tensors |= attention(f"{last}.self_attn", bf16) | bf16(f"{last}.mlp.gate", 2, HIDDEN)
    tensors |= join(mlp(f"{last}.{one}", bf16) for one in (*experts, "mlp.shared_experts"))
    config = {"architectures": ["Glm4MoeForCausalLM"], "num_nextn_predict_layers": 1, "tie_word_embeddings": False}
    return tensors, SIZES | config | compressed("lm_head", f"re:.*layers[.]{LAYERS}[.].*")


def gemma4() -> Model:
    """Its full attention takes the keys for values: these layers have no v_proj."""
    kinds = ["sliding_attention", "full_attention"] * (LAYERS // 2)
    tensors = decoder("model.language_model", dense(nvfp4), head="")
    for layer, kind in enumerate(kinds):
        if kind == "full_attention":
            tensors = {name: one for name, one in tensors.items() if f"layers.{layer}.self_attn.v_proj" not in name}
    text = SIZES | {"layer_types": kinds, "attention_k_eq_v": True, "num_kv_shared_layers": 0}
    quantization = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}
    config = {"architectures": ["Gemma4ForConditionalGeneration"], "text_config": text}
    return tensors, config | {"quantization_config": quantization}


def nemotron_nas() -> Model:
    """Some of its layers have no attention, as block_configs says."""
    blocks = [{"attention": {"no_op": layer % 2 == 1}, "ffn": {"no_op": False}} for layer in range(LAYERS)]
    tensors = decoder(
        "model",
        lambda name, layer: attention(f"{name}.self_attn", nvfp4) if layer % 2 == 0 else {},
        lambda name, _: mlp(f"{name}.mlp", nvfp4),
    )
    quantization = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}
    config = {"architectures": ["DeciLMForCausalLM"], "block_configs": blocks, "num_key_value_heads": None}
    return tensors, SIZES | config | {"quantization_config": quantization}


def nemotron_h() -> Model:
    """Layers of three kinds under other names: state space, attention, experts."""
    pattern = "ME*E"
    inner: dict[str, Callable[[str], Tensors]] = {
        "M": lambda name: (
            bf16(f"{name}.in_proj", 128, HIDDEN) | bf16(f"{name}.out_proj", HIDDEN, 64) | bf16(f"{name}.norm", 64)
        ),
        "E": lambda name: (
            bf16(f"{name}.gate", 2, HIDDEN) | join(mlp(f"{name}.experts.{one}", nvfp4) for one in range(2))
        ),
        "*": lambda name: attention(name, bf16),
    }
    tensors = bf16("backbone.embeddings", VOCABULARY, HIDDEN) | bf16("backbone.norm_f", HIDDEN)
    for layer, kind in enumerate(pattern):
        prefix = f"backbone.layers.{layer}"
        tensors |= bf16(f"{prefix}.norm", HIDDEN) | inner[kind](f"{prefix}.mixer")
    tensors |= bf16("lm_head", VOCABULARY, HIDDEN)
    ignored = ["lm_head", "*.mixer.in_proj", "*.mixer.out_proj", "*.mixer.gate", "*.mixer.?_proj"]
    config = {
        "architectures": ["NemotronHForCausalLM"],
        "hybrid_override_pattern": pattern,
        "tie_word_embeddings": False,
    }
    return tensors, SIZES | config | {
        "quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ignored}
    }


def gpt_oss() -> Model:
    """Experts of a layer in one tensor, in MXFP4 as its makers store it."""

    def experts(name: str, _: int) -> Tensors:
        stacks = {"gate_up_proj": 2 * WIDE, "down_proj": HIDDEN}
        parts = {"blocks": ("U8", [2, 0, 2, 16]), "scales": ("U8", [2, 0, 2])}
        return {
            f"{name}.mlp.experts.{stack}_{part}": (dtype, [rows if one == 0 else one for one in shape])
            for stack, rows in stacks.items()
            for part, (dtype, shape) in parts.items()
        } | bf16(f"{name}.mlp.router", 2, HIDDEN)

    tensors = decoder("model", lambda name, _: attention(f"{name}.self_attn", bf16), experts)
    kinds = ["sliding_attention", "full_attention"] * (LAYERS // 2)
    config = {"architectures": ["GptOssForCausalLM"], "layer_types": kinds, "tie_word_embeddings": False}
    plain = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return tensors, SIZES | config | {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": plain}}


MODELS: list[Callable[[], Model]] = [
    qwen3_vl,
    gemma3,
    mixed,
    ministral3,
    glm,
    gemma4,
    nemotron_nas,
    nemotron_h,
    gpt_oss,
]


@pytest.mark.parametrize("make_model", MODELS)
def test_a_sound_model_has_no_finding(tmp_path: Path, make_model: Callable[[], Model]) -> None:
    tensors, config = make_model()
    root = write(tmp_path / "model", {"tensors": tensors, "config": config})
    assert verify_headers(root).findings == ()


def test_a_group_that_quantizes_activations_needs_their_scales(tmp_path: Path) -> None:
    tensors, config = mixed()
    config["quantization_config"]["config_groups"]["group_1"]["input_activations"] = {"num_bits": 4, "dynamic": "local"}
    found = verify_headers(write(tmp_path / "model", {"tensors": tensors, "config": config})).findings
    assert [(one.rule.code, len(one.subjects)) for one in found] == [("input-scale-missing", 3 * LAYERS)]


def test_only_the_group_without_quantized_activations_is_called_weights_only(tmp_path: Path) -> None:
    tensors, config = mixed()
    root = write(tmp_path / "model", {"tensors": tensors, "config": config})
    names = set(format_name(verify_headers(root).checkpoint).split(" + "))
    assert names == {"compressed-tensors nvfp4-pack-quantized, weights only (W4A16)", "compressed-tensors FP8"}


def test_static_activations_need_their_scale(tmp_path: Path) -> None:
    tensors, config = ministral3()
    lost = "language_model.model.layers.1.mlp.up_proj.activation_scale"
    found = verify_headers(write(tmp_path / "model", {"tensors": tensors, "config": config}, without=lost)).findings
    assert [(one.rule.code, one.subjects) for one in found] == [("input-scale-missing", (lost,))]


def test_a_method_that_is_not_known_is_not_judged_and_that_is_said(tmp_path: Path) -> None:
    quantization = {"quant_method": "quark", "exclude": ["lm_head"], "export": {}}
    export = {"tensors": decoder("model", dense(quark_mxfp4)), "config": SIZES | {"quantization_config": quantization}}
    found = verify_headers(
        write(tmp_path / "model", export, without="model.layers.1.mlp.up_proj.weight_scale")
    ).findings
    assert [(one.rule.code, one.detail) for one in found] == [("quant-method-not-judged", "quant_method is 'quark'")]


def test_a_folder_in_mistrals_own_format_is_not_judged_and_that_is_said(tmp_path: Path) -> None:
    linears = ("attention.wq", "attention.wk", "attention.wv", "attention.wo", "feed_forward.w1", "feed_forward.w2")
    tensors = join(bf16(f"layers.{layer}.{name}", 64, 64) for layer in range(2) for name in linears)
    root = write(
        tmp_path, {"tensors": bf16("tok_embeddings", 128, 64) | tensors | bf16("output", 128, 64), "config": {}}
    )
    (root / "model.safetensors").rename(root / "consolidated.safetensors")
    (root / "config.json").unlink()
    (root / "tokenizer.json").rename(root / "tekken.json")
    assert "config-unreadable" in {one.rule.code for one in verify_headers(root).findings}
    (root / "params.json").write_text("{}")
    assert [one.rule.code for one in verify_headers(root).findings] == ["mistral-format"]
    with (root / "consolidated.safetensors").open("ab") as stream:
        stream.write(b"0")
    assert {one.rule.code for one in verify_headers(root).findings} == {"mistral-format", "shard-truncated"}


@pytest.mark.parametrize(
    ("entry", "ignored"),
    [
        ("model.layers.1.mlp.up_proj", True),
        ("layers.1.mlp", True),
        ("1.mlp", True),
        ("model.layers.1", True),
        ("model.layers.*.mlp.up_proj", True),
        ("model.layers.11.mlp.up_proj", False),
        ("layers.2.mlp", False),
        ("*.mlp", False),
        ("", False),
    ],
)
def test_entries_of_modelopt_are_looked_for_anywhere_in_a_name(entry: str, ignored: bool) -> None:
    settings = parse({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": [entry]})
    assert settings.ignores(Module("model.layers.1.mlp.up_proj", {})) is ignored


@pytest.mark.parametrize(("make_model", "layer"), [(gemma4, 2), (nemotron_nas, 2)])
def test_a_layer_that_lacks_what_others_of_its_kind_have_is_found(
    tmp_path: Path, make_model: Callable[[], Model], layer: int
) -> None:
    tensors, config = make_model()
    kept = {name: one for name, one in tensors.items() if f"layers.{layer}.self_attn.v_proj" not in name}
    found = verify_headers(write(tmp_path / "model", {"tensors": kept, "config": config})).findings
    assert [one.rule.code for one in found] == ["layer-incomplete"]
    assert found[0].subjects[0].endswith(f"layers.{layer}.self_attn.v_proj")


def test_linear_attention_that_vllm_fuses_must_be_quantized_as_one(tmp_path: Path) -> None:
    parts: dict[str, Linear] = {
        "in_proj_qkv": nvfp4,
        "in_proj_z": bf16,
        "in_proj_b": bf16,
        "in_proj_a": bf16,
        "out_proj": nvfp4,
    }
    tensors = decoder(
        "model.language_model",
        lambda name, _: join(linear(f"{name}.linear_attn.{one}", 64, HIDDEN) for one, linear in parts.items()),
        lambda name, _: mlp(f"{name}.mlp", nvfp4),
    )
    ignored = ["lm_head", *(f"*.in_proj_{one}" for one in "zba")]
    quantization = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ignored}
    config = {"text_config": SIZES, "quantization_config": quantization}
    found = verify_headers(write(tmp_path / "model", {"tensors": tensors, "config": config})).findings
    assert [(one.rule.code, len(one.subjects)) for one in found] == [("fused-partly-quantized", 2 * LAYERS)]


@pytest.mark.parametrize(
    ("name", "module"),
    [  # as vLLM's model classes for multi-token prediction read them
        ("mtp.fc.weight", "mtp"),
        ("mtp.layers.0.self_attn.q_proj.weight", "mtp"),
        ("model.mtp.layers.0.eh_proj.weight", "model.mtp"),
        ("model.mtp_layers.0.input_proj.weight", "model.mtp_layers"),
        ("model.mtp_block.0.mlp.up_proj.weight", "model.mtp_block"),
        ("model.layers.61.eh_proj.weight", "model.layers.61"),
        ("model.layers.60.mlp.up_proj.weight", None),
        ("model.layers.62.mlp.up_proj.weight", None),
        ("model.layers.6.mlp.up_proj.weight", None),
        (f"model.layers.{'6' * 5000}.mlp.up_proj.weight", None),
        ("model.visual.blocks.61.mlp.up_proj.weight", None),
        ("lm_head.weight", None),
        ("model.embed_tokens.weight", None),
    ],
)
def test_what_predicts_several_tokens_ahead(name: str, module: str | None) -> None:
    assert prediction_module(name, range(61, 62)) == module
