"""Tiny checkpoints made in the test: a sound one, to which a test does one thing."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

HIDDEN, WIDE, LAYERS, VOCABULARY = 64, 96, 3, 128
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)

Array = NDArray[Any]


def quantize(weight: Array, global_scale: float) -> tuple[Array, Array]:
    """Packed bytes and block scales of NVFP4, by the definition: nearest of the eight magnitudes."""
    blocks = weight.reshape(weight.shape[0], -1, 16)
    scale = (np.abs(blocks).max(axis=-1) / 6 / global_scale).astype(ml_dtypes.float8_e4m3fn)
    values = blocks / np.maximum(scale.astype(np.float32) * global_scale, 1e-30)[..., None]
    codes = np.abs(np.abs(values)[..., None] - E2M1).argmin(axis=-1) | (np.signbit(values) << 3)
    codes = codes.reshape(weight.shape).astype(np.uint8)
    return codes[:, 0::2] | (codes[:, 1::2] << 4), scale


@dataclass
class Model:
    """A checkpoint to be written: change what you like, then `write`."""

    tensors: dict[str, Array]
    config: dict[str, Any]
    hf_quant: dict[str, Any] | None = None
    tokenizer: dict[str, Any] = field(default_factory=lambda: {"chat_template": "{{ messages }}"})
    shards: int = 2

    def write(self, root: Path) -> Path:
        """Write it as a folder with shards, index, configs and tokenizer."""
        root.mkdir(parents=True)
        names = sorted(self.tensors)
        places: dict[str, str] = {}
        for shard in range(self.shards):
            file = f"model-{shard + 1:05}-of-{self.shards:05}.safetensors"
            mine = names[shard * len(names) // self.shards : (shard + 1) * len(names) // self.shards]
            save_file({name: np.ascontiguousarray(self.tensors[name]) for name in mine}, root / file)
            places |= dict.fromkeys(mine, file)
        put(root, "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
        put(root, "config.json", self.config)
        put(root, "tokenizer.json", {})
        put(root, "tokenizer_config.json", self.tokenizer)
        if self.hf_quant is not None:
            put(root, "hf_quant_config.json", self.hf_quant)
        return root


def put(root: Path, name: str, value: object) -> None:
    """Write a JSON file."""
    (root / name).write_text(json.dumps(value))


def _weights() -> dict[str, Array]:
    random = np.random.default_rng(7)

    def gaussian(rows: int, columns: int) -> Array:
        return (random.standard_normal((rows, columns)) * 0.02).astype(ml_dtypes.bfloat16)

    ones = np.ones(HIDDEN, dtype=ml_dtypes.bfloat16)
    weights = {
        "model.embed_tokens": gaussian(VOCABULARY, HIDDEN),
        "lm_head": gaussian(VOCABULARY, HIDDEN),
        "model.norm": ones,
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.input_layernorm": ones,
            f"{prefix}.self_attn.q_proj": gaussian(64, HIDDEN),
            f"{prefix}.self_attn.k_proj": gaussian(32, HIDDEN),
            f"{prefix}.self_attn.v_proj": gaussian(32, HIDDEN),
            f"{prefix}.self_attn.o_proj": gaussian(HIDDEN, 64),
        }
        if layer == 0:
            weights |= _mlp(f"{prefix}.mlp", gaussian)
            continue
        weights[f"{prefix}.mlp.gate"] = gaussian(2, HIDDEN)
        for expert in range(2):
            weights |= _mlp(f"{prefix}.mlp.experts.{expert}", gaussian)
    weights["mtp.fc"] = gaussian(HIDDEN, 2 * HIDDEN)
    return weights


def _mlp(prefix: str, gaussian: Callable[[int, int], Array]) -> dict[str, Array]:
    return {
        f"{prefix}.gate_proj": gaussian(WIDE, HIDDEN),
        f"{prefix}.up_proj": gaussian(WIDE, HIDDEN),
        f"{prefix}.down_proj": gaussian(HIDDEN, WIDE),
    }


UNQUANTIZED = ("lm_head", "mtp.fc", "model.layers.1.mlp.gate", "model.layers.2.mlp.gate")
SHARED_SCALE = 2e-4
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "vocab_size": VOCABULARY,
    "num_experts_per_tok": 1,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": 0,
}


def _linears(weights: dict[str, Array]) -> dict[str, Array]:
    return {
        name: weight
        for name, weight in weights.items()
        if name.endswith("_proj") and name not in UNQUANTIZED and weight.ndim == 2
    }


def _base() -> Model:
    return Model({f"{name}.weight": weight for name, weight in _weights().items()}, dict(CONFIG))


def _modelopt() -> Model:
    weights = _weights()
    tensors = {f"{name}.weight": weight for name, weight in weights.items()}
    for name, weight in _linears(weights).items():
        packed, scale = quantize(weight.astype(np.float32), SHARED_SCALE)
        tensors |= {
            f"{name}.weight": packed,
            f"{name}.weight_scale": scale,
            f"{name}.weight_scale_2": np.array(SHARED_SCALE, dtype=np.float32),
            f"{name}.input_scale": np.array(0.003, dtype=np.float32),
        }
    group = {"weights": {"num_bits": 4}, "input_activations": {"num_bits": 4}, "targets": ["Linear"]}
    quantization = {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "ignore": list(UNQUANTIZED),
        "config_groups": {"group_0": group},
    }
    other = {"quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": 16, "exclude_modules": list(UNQUANTIZED)}
    config = {**CONFIG, "quantization_config": quantization}
    return Model(tensors, config, hf_quant={"producer": {"name": "modelopt"}, "quantization": other})


def _packed() -> Model:
    weights = _weights()
    tensors = {f"{name}.weight": weight for name, weight in weights.items()}
    for name, weight in _linears(weights).items():
        packed, scale = quantize(weight.astype(np.float32), 1 / 5000)
        del tensors[f"{name}.weight"]
        tensors |= {
            f"{name}.weight_packed": packed,
            f"{name}.weight_scale": scale,
            f"{name}.weight_global_scale": np.array([5000], dtype=np.float32),
            f"{name}.input_global_scale": np.array([333], dtype=np.float32),
        }
    group = {"weights": {"num_bits": 4}, "input_activations": {"num_bits": 4}, "targets": ["Linear"]}
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "ignore": ["lm_head", "mtp.fc", "re:.*mlp.gate$"],
        "config_groups": {"group_0": group},
    }
    return Model(tensors, {**CONFIG, "quantization_config": quantization})


_MAKERS = {"base": _base, "modelopt": _modelopt, "packed": _packed}


@pytest.fixture
def make() -> Callable[[str], Model]:
    """A sound model by kind: `base` (BF16), `modelopt` or `packed` (compressed-tensors)."""
    return lambda kind: _MAKERS[kind]()
