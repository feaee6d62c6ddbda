"""Write a tiny random model with a trained tokenizer and a chat template; run by a Python that has transformers."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # type: ignore[import-not-found]
from transformers import (  # type: ignore[import-not-found]
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
)

_TEMPLATE = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}<|assistant|>"
_TEXT = ["The capital of France is Paris.", "A wright is one who builds; a spark is small and bright."] * 50
_SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
_LAYER = re.compile(r"model\.layers\.0\.")

_RECURRENT = {
    **{f"linear_num_{one}_heads": heads for one, heads in (("key", 2), ("value", 4))},
    **{f"linear_{one}_head_dim": 32 for one in ("key", "value")},
}
_MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 256}
_RECURRENT_MIXTURE = {**_MIXTURE, **_RECURRENT}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen3": {},
    # The first layer is dense, as in some mixtures of experts: not all layers are alike.
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "mlp_only_layers": [0]},
    # With a shared expert and its gate.
    "qwen2_moe": _MIXTURE,
    # Three layers with a recurrent state, then one with attention.
    "qwen3_next": _RECURRENT_MIXTURE,
    # The text model alone of one with vision, whose names it does not have.
    "qwen3_5_text": _RECURRENT,
    # Its files stack the experts under names of their own.
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    # Each layer gets an embedding of its own.
    "gemma4_text": {
        "vocab_size_per_layer_input": 512,
        "hidden_size_per_layer_input": 32,
        "num_kv_shared_layers": 0,
        "global_head_dim": 32,
    },
    # A head with a bias.
    "phi": {},
    # Attention and a state space side by side, the latter with a convolution.
    "falcon_h1": {
        "mamba_d_ssm": 256,
        "mamba_n_heads": 8,
        "mamba_d_head": 32,
        "mamba_d_state": 16,
        "mamba_chunk_size": 32,
    },
    "qwen3_5_moe": _RECURRENT_MIXTURE,
    # Its names in memory are others than in its files.
    "mistral3": {"model_type": "mistral"},
}

VISION: dict[str, dict[str, Any]] = {
    "qwen3_5_moe": {"depth": 2, "num_heads": 4, "out_hidden_size": 256},
    "mistral3": {
        "model_type": "pixtral",
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 16,
    },
}
"""What sees beside the language model, by the architecture of both."""


def main() -> None:
    """Make and save model and tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="llama")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--wide", type=int, default=512, help="the width of the MLP")
    parser.add_argument("--sees", type=int, default=64, help="the width of what sees")
    parser.add_argument("--experts", type=int, help="how many a mixture has")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", default="50GB", help="the largest size of one file, as 1MB")
    parser.add_argument("--tied", action="store_true", help="the head is the embedding")
    parser.add_argument(
        "--skew", type=float, default=1, help="a power of two that makes inner activations smaller, and nothing else"
    )
    parser.add_argument(
        "--prediction",
        nargs=2,
        metavar=("LAYER", "PROJECTION"),
        help="what published models have for multi-token prediction and transformers does not load: a copy of the last "
        "layer under this name, and a projection",
    )
    parser.add_argument("--copies", action="store_true", help="all layers alike, one file each: fast for large models")
    options = parser.parse_args()
    _save_tokenizer(options.folder)
    torch.manual_seed(options.seed)
    text: dict[str, Any] = dict(
        vocab_size=512,
        hidden_size=options.hidden,
        intermediate_size=options.wide,
        moe_intermediate_size=options.wide // 2,
        num_hidden_layers=1 if options.copies else options.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=options.hidden // 8,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        tie_word_embeddings=options.tied,
        **ARCHITECTURES[options.architecture] | ({"num_experts": options.experts} if options.experts else {}),
    )
    if options.architecture in VISION:
        wide = {"hidden_size": options.sees, "intermediate_size": 2 * options.sees}
        parts = {"text_config": text, "vision_config": VISION[options.architecture] | wide}
        config = AutoConfig.for_model(options.architecture, dtype="bfloat16", **parts)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    else:
        config = AutoConfig.for_model(options.architecture, dtype="bfloat16", **text)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("v_proj.weight", "up_proj.weight")):
                weight.div_(options.skew)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(options.skew)
    model.save_pretrained(options.folder, max_shard_size=options.files)
    if hasattr(config, "num_experts"):
        _change(options.folder / "config.json", num_experts=config.num_experts)
    if options.copies:
        _copy_layer(options.folder, options.layers)
    if options.prediction:
        _add_prediction(options.folder / "model.safetensors", f"model.layers.{options.layers - 1}", *options.prediction)
        _change(options.folder / "config.json", num_nextn_predict_layers=1)


def _save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet, special_tokens=_SPECIAL)
    tokenizer.train_from_iterator(_TEXT, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = _TEMPLATE
    fast.save_pretrained(folder)
    _change(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def _change(file: Path, **settings: object) -> None:
    """Set what published models say, and transformers 5 writes in words that 4 does not know."""
    file.write_text(json.dumps(json.loads(file.read_text()) | settings, indent=2))


def _add_prediction(file: Path, last: str, layer: str, projection: str) -> None:
    tensors = load_file(file)
    hidden = tensors["model.norm.weight"].shape[0]
    copied = {f"{layer}.{name.removeprefix(f'{last}.')}": one for name, one in tensors.items() if name.startswith(last)}
    tensors |= {name: one.clone() for name, one in copied.items()}
    tensors[f"{projection}.weight"] = torch.randn(hidden, 2 * hidden).to(torch.bfloat16)
    save_file(tensors, file, metadata={"format": "pt"})


def _copy_layer(folder: Path, layers: int) -> None:
    """Turn a model of one layer into one of many, each layer in a file of its own."""
    source = folder / "model.safetensors"
    with safe_open(source, framework="pt") as stream:
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
    places: dict[str, str] = {}
    layer = {name: tensor for name, tensor in tensors.items() if _LAYER.match(name)}
    rest = {name: tensor for name, tensor in tensors.items() if name not in layer}
    for number in range(layers + 1):
        file = f"model-{number + 1:05}-of-{layers + 1:05}.safetensors"
        renamed = {_LAYER.sub(f"model.layers.{number}.", name): tensor for name, tensor in layer.items()}
        mine = renamed if number < layers else rest
        save_file(mine, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(mine, file)
    source.unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}, indent=2))
    _change(folder / "config.json", num_hidden_layers=layers)


if __name__ == "__main__":
    main()
