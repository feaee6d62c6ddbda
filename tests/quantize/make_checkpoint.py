"""Quantize a small model to NVFP4 with a public tool's own one-shot flow; run by a Python that has that tool.

modelopt needs 0.47 or newer on a machine without CUDA; for 0.43 its question for CUDA is answered here. llm-compressor
writes compressed-tensors' format.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]
from transformers import (  # type: ignore[import-not-found]
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)

_TEXT = (
    "A wright is one who builds. A spark is small and bright, and gone before it is understood. "
    "The capital of France is Paris; that of Norway is Oslo, and that of Kenya is Nairobi. "
    "Water boils at one hundred degrees, unless you stand on a mountain. 0123456789 + 42 = ?"
)


def main() -> None:
    """Calibrate, quantize and save model and tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tool", choices=["modelopt", "llm-compressor"], default="modelopt")
    parser.add_argument("--data", type=Path, help="calibrate with the samples that `sparkwright quantize` would take")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=64, help="tokens of a sample")
    parser.add_argument("--weights-only", action="store_true", help="leave the activations alone (llm-compressor)")
    parser.add_argument("--uncalibrated", action="store_true", help="as if there were no data (modelopt)")
    parser.add_argument("--exclude", help="leave the modules of this pattern as they are (modelopt)")
    parser.add_argument("--kv-cache", choices=["fp8"], help="scales for the cache (modelopt)")
    parser.add_argument("--hybrid", action="store_true", help="experts in NVFP4, attention in FP8 (modelopt)")
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    batches = _batches(tokenizer, options.data, options.samples, options.length)
    sees = hasattr(AutoConfig.from_pretrained(options.model), "vision_config")
    kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    model = kind.from_pretrained(options.model, dtype=torch.bfloat16).eval()
    if options.tool == "modelopt":
        config = _modelopt_config(options.exclude, hybrid=options.hybrid, kv_cache=options.kv_cache is not None)
        _modelopt(model, config, [] if options.uncalibrated else batches, options.output)
    else:
        _llm_compressor(model, batches, options.output, "NVFP4A16" if options.weights_only else "NVFP4")
    tokenizer.save_pretrained(options.output)


def _batches(tokenizer: Any, data: Path | None, samples: int, length: int) -> list[torch.Tensor]:  # noqa: ANN401
    if data is not None:
        from sparkwright.quantize.calibration import read_samples
        from sparkwright.quantize.options import Calibration

        chosen = Calibration(data=str(data), samples=samples, length=length)
        return [torch.tensor([one]) for one in read_samples(chosen, tokenizer).tokens]
    tokens = tokenizer(_TEXT).input_ids
    tokens *= -(-samples * length // len(tokens))
    return [torch.tensor([tokens[at * length : (at + 1) * length]]) for at in range(samples)]


def _modelopt_config(exclude: str | None, *, hybrid: bool, kv_cache: bool) -> dict[str, Any]:
    import modelopt.torch.quantization as mtq  # type: ignore[import-not-found]

    config: dict[str, Any] = copy.deepcopy(mtq.NVFP4_EXPERTS_ONLY_CFG if hybrid else mtq.NVFP4_DEFAULT_CFG)
    if hybrid:
        fp8 = {"num_bits": (4, 3), "axis": None}
        names = ("*self_attn*weight_quantizer", "*self_attn*input_quantizer")
        config["quant_cfg"] += [{"quantizer_name": name, "cfg": fp8} for name in names]
    if kv_cache:
        config["quant_cfg"] += copy.deepcopy(mtq.FP8_KV_CFG["quant_cfg"])
    if exclude:
        config["quant_cfg"].append({"quantizer_name": exclude, "enable": False})
    return config


def _modelopt(model: Any, config: dict[str, Any], batches: list[torch.Tensor], output: Path) -> None:  # noqa: ANN401
    import modelopt
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint  # type: ignore[import-not-found]

    if modelopt.__version__.startswith("0.43."):
        from modelopt.torch.quantization.qtensor import nvfp4_tensor  # type: ignore[import-not-found]

        nvfp4_tensor.fp4_compatible = lambda: False  # else: "Torch not compiled with CUDA enabled"

    def forward_loop(quantized: Any) -> None:  # noqa: ANN401
        for batch in batches:
            quantized(batch)

    mtq.quantize(model, config, forward_loop=forward_loop if batches else None)
    with torch.inference_mode():
        export_hf_checkpoint(model, export_dir=output)


def _llm_compressor(model: Any, batches: list[torch.Tensor], output: Path, scheme: str) -> None:  # noqa: ANN401
    from datasets import Dataset  # type: ignore[import-not-found]
    from llmcompressor import oneshot  # type: ignore[import-not-found]
    from llmcompressor.modifiers.quantization import QuantizationModifier  # type: ignore[import-not-found]

    rows = [{"input_ids": batch[0].tolist(), "attention_mask": [1] * batch.shape[1]} for batch in batches]
    recipe = QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head", "re:.*mlp.gate$"])
    oneshot(
        model=model,
        dataset=Dataset.from_list(rows),
        recipe=recipe,
        max_seq_length=batches[0].shape[1],
        num_calibration_samples=len(batches),
    )
    model.save_pretrained(output, save_compressed=True)


if __name__ == "__main__":
    main()
