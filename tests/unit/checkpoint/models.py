"""Real models by their public facts: names and shapes of tensors, fields of config.json.

Of the experts of a mixture only a few are there, which keeps the headers small; what is cached does not depend on them.
"""

from collections.abc import Callable, Iterator

from tests.unit.checkpoint.holes import Tensors, bf16, fp8, nvfp4

Model = tuple[Tensors, dict[str, object]]
EXPERTS = 4


def ignoring(*names: str) -> dict[str, object]:
    """All Linears in NVFP4 but these, as modelopt writes it."""
    return {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head", *names]}


def mixed(tensors: Tensors) -> dict[str, object]:
    """An algorithm for each layer, as modelopt writes it."""
    algorithms = {"F8_E4M3": "FP8", "U8": "NVFP4"}
    layers = {
        name.removesuffix(".weight"): {"quant_algo": algorithms[dtype]}
        for name, (dtype, _) in tensors.items()
        if name.endswith(".weight") and dtype in algorithms
    }
    return {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}


def dense(*, layers: int, hidden: int, wide: int, heads: int, kv_heads: int, vocabulary: int) -> Model:
    tensors = bf16("model.embed_tokens", vocabulary, hidden)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        tensors |= bf16(f"{prefix}.input_layernorm", hidden) | bf16(f"{prefix}.post_attention_layernorm", hidden)
        tensors |= nvfp4(f"{prefix}.self_attn.q_proj", heads * 128, hidden)
        tensors |= nvfp4(f"{prefix}.self_attn.k_proj", kv_heads * 128, hidden)
        tensors |= nvfp4(f"{prefix}.self_attn.v_proj", kv_heads * 128, hidden)
        tensors |= nvfp4(f"{prefix}.self_attn.o_proj", hidden, heads * 128)
        tensors |= mlp(f"{prefix}.mlp", hidden, wide)
    tensors |= bf16("model.norm", hidden) | bf16("lm_head", vocabulary, hidden)
    config = {
        "architectures": ["MistralForCausalLM"],
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "vocab_size": vocabulary,
        "num_attention_heads": heads,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "quantization_config": ignoring(),
    }
    return tensors, config


def attention(prefix: str, hidden: int, *, heads: int, kv_heads: int, width: int, gated: bool = False) -> Tensors:
    return (
        bf16(f"{prefix}.q_proj", heads * width * (2 if gated else 1), hidden)
        | bf16(f"{prefix}.k_proj", kv_heads * width, hidden)
        | bf16(f"{prefix}.v_proj", kv_heads * width, hidden)
        | bf16(f"{prefix}.o_proj", hidden, heads * width)
    )


def experts(prefix: str, hidden: int, wide: int, *names: str) -> Iterator[Tensors]:
    for expert in range(EXPERTS):
        for name in names:
            rows, columns = (hidden, wide) if name == "down_proj" else (wide, hidden)
            yield nvfp4(f"{prefix}.{expert}.{name}", rows, columns)


def mlp(prefix: str, hidden: int, wide: int) -> Tensors:
    return (
        nvfp4(f"{prefix}.gate_proj", wide, hidden)
        | nvfp4(f"{prefix}.up_proj", wide, hidden)
        | nvfp4(f"{prefix}.down_proj", hidden, wide)
    )


def gemma_4() -> Model:
    """Gemma 4 26B: windows in five of six layers; the others have wider heads, and keys that serve as values."""
    hidden = 2816
    kinds = ["full_attention" if (layer + 1) % 6 == 0 else "sliding_attention" for layer in range(30)]
    tensors = bf16("model.language_model.embed_tokens", 262144, hidden) | bf16("model.language_model.norm", hidden)
    for layer, kind in enumerate(kinds):
        prefix = f"model.language_model.layers.{layer}"
        full = kind == "full_attention"
        kv_heads, width = (2, 512) if full else (8, 256)
        tensors |= attention(f"{prefix}.self_attn", hidden, heads=16, kv_heads=kv_heads, width=width)
        if full:
            del tensors[f"{prefix}.self_attn.v_proj.weight"]
        tensors |= bf16(f"{prefix}.router.proj", 128, hidden)
        for one in experts(f"{prefix}.experts", hidden, 704, "gate_proj", "up_proj", "down_proj"):
            tensors |= one
    tensors |= attention("model.vision_tower.encoder.layers.0.self_attn", 1152, heads=16, kv_heads=16, width=72)
    text = {
        "model_type": "gemma4_text",
        "num_hidden_layers": 30,
        "hidden_size": hidden,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "num_global_key_value_heads": 2,
        "global_head_dim": 512,
        "attention_k_eq_v": True,
        "layer_types": kinds,
        "sliding_window": 1024,
        "num_experts": 128,
        "top_k_experts": 8,
        "max_position_embeddings": 262144,
    }
    quantization = ignoring("*self_attn*", "*router*", "model.vision_tower*")
    return tensors, {"model_type": "gemma4", "text_config": text, "quantization_config": quantization}


def gpt_oss() -> Model:
    """gpt-oss 120B: windows in every other layer, experts stacked in MXFP4."""
    hidden = 2880
    tensors = bf16("model.embed_tokens", 201088, hidden) | bf16("lm_head", 201088, hidden)
    tensors |= bf16("model.norm", hidden)
    for layer in range(36):
        prefix = f"model.layers.{layer}"
        tensors |= attention(f"{prefix}.self_attn", hidden, heads=64, kv_heads=8, width=64)
        tensors[f"{prefix}.self_attn.sinks"] = ("BF16", (64,))
        tensors |= bf16(f"{prefix}.mlp.router", 128, hidden)
        for name, rows in {"gate_up_proj": 2 * hidden, "down_proj": hidden}.items():
            tensors[f"{prefix}.mlp.experts.{name}_blocks"] = ("U8", (128, rows, hidden // 32, 16))
            tensors[f"{prefix}.mlp.experts.{name}_scales"] = ("U8", (128, rows, hidden // 32))
            tensors[f"{prefix}.mlp.experts.{name}_bias"] = ("BF16", (128, rows))
    config = {
        "model_type": "gpt_oss",
        "num_hidden_layers": 36,
        "hidden_size": hidden,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "layer_types": ["sliding_attention", "full_attention"] * 18,
        "sliding_window": 128,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "max_position_embeddings": 131072,
        "quantization_config": {"quant_method": "mxfp4"},
    }
    return tensors, config


def nemotron(mamba: Callable[[str, int, int], Tensors]) -> Model:
    """Nemotron 3 30B: Mamba, experts or attention in each layer, all under the name of mixer."""
    hidden, blocks = 2688, "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
    tensors = bf16("backbone.embeddings", 131072, hidden) | bf16("lm_head", 131072, hidden)
    tensors |= bf16("backbone.norm_f", hidden)
    for layer, kind in enumerate(blocks):
        prefix = f"backbone.layers.{layer}.mixer"
        tensors |= bf16(f"backbone.layers.{layer}.norm", hidden)
        if kind == "*":
            tensors |= attention(prefix, hidden, heads=32, kv_heads=2, width=128)
        elif kind == "M":
            tensors |= mamba(f"{prefix}.in_proj", 10304, hidden) | mamba(f"{prefix}.out_proj", hidden, 4096)
            tensors |= bf16(f"{prefix}.conv1d", 6144, 1, 4) | bf16(f"{prefix}.norm", 4096)
            for name in ("A_log", "D", "dt_bias"):
                tensors[f"{prefix}.{name}"] = ("BF16", (64,))
        else:
            tensors |= bf16(f"{prefix}.gate", 128, hidden)
            for one in experts(f"{prefix}.experts", hidden, 1856, "up_proj", "down_proj"):
                tensors |= one
            tensors |= nvfp4(f"{prefix}.shared_experts.up_proj", 3712, hidden)
            tensors |= nvfp4(f"{prefix}.shared_experts.down_proj", hidden, 3712)
    tensors |= attention("mtp.layers.0.mixer", hidden, heads=32, kv_heads=2, width=128)
    config = {
        "model_type": "nemotron_h",
        "num_hidden_layers": 52,
        "hidden_size": hidden,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "hybrid_override_pattern": blocks,
        "mamba_num_heads": 64,
        "mamba_head_dim": 64,
        "ssm_state_size": 128,
        "mamba_ssm_cache_dtype": "float32",
        "n_routed_experts": 128,
        "num_experts_per_tok": 6,
        "max_position_embeddings": 262144,
        "quantization_config": mixed(tensors)
        if mamba is fp8
        else ignoring("*.gate", "mtp*", *(f"backbone.layers.{at}.mixer*" for at in range(52) if blocks[at] == "*")),
    }
    return tensors, config


def qwen_hybrid(
    *, layers: int, hidden: int, heads: int, kv_heads: int, value_heads: int, fused: bool, wide: int = 0
) -> Model:
    """Qwen3-Next and Qwen3.6: linear attention in three of four layers; a dense MLP where `wide` is given."""
    root = "model" if fused else "model.language_model"
    keys, values = 2 * 16 * 128, value_heads * 128
    tensors = bf16(f"{root}.embed_tokens", 151936, hidden) | bf16("lm_head", 151936, hidden)
    tensors |= bf16(f"{root}.norm", hidden)
    for layer in range(layers):
        prefix = f"{root}.layers.{layer}"
        linear = f"{prefix}.linear_attn"
        if layer % 4 == 3:
            tensors |= attention(f"{prefix}.self_attn", hidden, heads=heads, kv_heads=kv_heads, width=256, gated=True)
        else:
            if fused:
                tensors |= bf16(f"{linear}.in_proj_qkvz", keys + 2 * values, hidden)
                tensors |= bf16(f"{linear}.in_proj_ba", 2 * value_heads, hidden)
            else:
                tensors |= fp8(f"{linear}.in_proj_qkv", keys + values, hidden)
                tensors |= fp8(f"{linear}.in_proj_z", values, hidden)
                tensors |= bf16(f"{linear}.in_proj_b", value_heads, hidden)
                tensors |= bf16(f"{linear}.in_proj_a", value_heads, hidden)
            tensors |= bf16(f"{linear}.conv1d", keys + values, 1, 4) | bf16(f"{linear}.norm", 128)
            tensors |= bf16(f"{linear}.out_proj", hidden, values)
            for name in ("A_log", "dt_bias"):
                tensors[f"{linear}.{name}"] = ("BF16", (value_heads,))
        if wide:
            tensors |= mlp(f"{prefix}.mlp", hidden, wide)
            continue
        tensors |= mlp(f"{prefix}.mlp.shared_expert", hidden, 512)
        tensors |= bf16(f"{prefix}.mlp.gate", 512, hidden) | bf16(f"{prefix}.mlp.shared_expert_gate", 1, hidden)
        for one in experts(f"{prefix}.mlp.experts", hidden, 512, "gate_proj", "up_proj", "down_proj"):
            tensors |= one
    tensors |= attention("mtp.layers.0.self_attn", hidden, heads=heads, kv_heads=kv_heads, width=256, gated=True)
    tensors |= bf16("mtp.fc", hidden, 2 * hidden)
    text = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 256,
        "full_attention_interval": 4,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": value_heads,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "num_experts_per_tok": 8,
        "max_position_embeddings": 262144,
    }
    quantization = ignoring("*self_attn*", "*linear_attn*", "*gate", "mtp*") if fused else mixed(tensors)
    settings = {"quantization_config": quantization}
    return tensors, {**text, **settings} if fused else {"text_config": text, **settings}


RECIPES: dict[str, Callable[[], Model]] = {
    "anubis-pro-105b-nvfp4": lambda: dense(
        layers=120, hidden=8192, wide=28672, heads=64, kv_heads=8, vocabulary=128256
    ),
    "behemoth-x-123b-nvfp4": lambda: dense(layers=88, hidden=12288, wide=28672, heads=96, kv_heads=8, vocabulary=32768),
    "gemma-4-26b-a4b-nvfp4": gemma_4,
    "gpt-oss-120b": gpt_oss,
    "nemotron-3.5-lightning-30b-a3b-nvfp4": lambda: nemotron(fp8),
    "nemotron-cascade-2-30b-a3b-nvfp4": lambda: nemotron(nvfp4),
    "qwen3-32b-nvfp4": lambda: dense(layers=64, hidden=5120, wide=25600, heads=64, kv_heads=8, vocabulary=151936),
    "qwen3-8b-nvfp4": lambda: dense(layers=36, hidden=4096, wide=12288, heads=32, kv_heads=8, vocabulary=151936),
    "qwen3-next-80b-a3b-nvfp4": lambda: qwen_hybrid(
        layers=48, hidden=2048, heads=16, kv_heads=2, value_heads=32, fused=True
    ),
    "qwen3-next-80b-a3b-nvfp4-mtp": lambda: qwen_hybrid(
        layers=48, hidden=2048, heads=16, kv_heads=2, value_heads=32, fused=True
    ),
    "qwen3.6-27b-nvfp4": lambda: qwen_hybrid(
        layers=64, hidden=5120, heads=24, kv_heads=4, value_heads=48, fused=False, wide=17408
    ),
    "qwen3.6-35b-a3b-nvfp4": lambda: qwen_hybrid(
        layers=40, hidden=2048, heads=16, kv_heads=2, value_heads=32, fused=False
    ),
}
"""The models that `recipes/` serves."""
