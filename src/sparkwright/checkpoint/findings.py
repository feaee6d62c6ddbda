"""What can be wrong with a checkpoint: every code with its severity, its consequence in vLLM, and the remedy."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class Severity(StrEnum):
    """How bad a finding is."""

    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One kind of fault, the same for every checkpoint."""

    code: str
    severity: Severity
    title: str
    consequence: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A fault found in one checkpoint: the kind, the tensors, modules or files concerned, and what was seen."""

    rule: Rule
    subjects: tuple[str, ...] = ()
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """For scripts; all subjects are listed."""
        return {
            "code": self.rule.code,
            "severity": self.rule.severity.value,
            "title": self.rule.title,
            "tensors": list(self.subjects),
            "detail": self.detail,
            "consequence": self.rule.consequence,
            "remedy": self.rule.remedy,
        }


def _rule(code: str, severity: Severity, title: str, *, consequence: str, remedy: str) -> Rule:
    return Rule(code=code, severity=severity, title=title, consequence=consequence, remedy=remedy)


_E, _W = Severity.ERROR, Severity.WARNING
_AGAIN: Final = "Copy or download the file again and compare its sha256 with the source's."
_QUANTIZE: Final = "Quantize again with real calibration; no repair can restore what was not measured."
_SILENT: Final = (
    "vLLM checks that every weight was loaded only for unquantized models: here the parameter keeps uninitialised "
    "memory, the server reports healthy and answers noise."
)

RULES: Final = {
    rule.code: rule
    for rule in (
        _rule(
            "weights-missing",
            _E,
            "the folder holds no safetensors file",
            consequence="vLLM ends with `Cannot find any model weights`.",
            remedy="Name the folder that holds the .safetensors files; finish the download.",
        ),
        _rule(
            "shard-missing",
            _E,
            "the index names a file that is not there",
            consequence="vLLM ends with `Weight files referenced in index but missing`.",
            remedy="Finish the copy or download of the missing files.",
        ),
        _rule(
            "shard-unreadable",
            _E,
            "a safetensors header cannot be read",
            consequence="Loading ends with `SafetensorError`, after the shards before it were loaded.",
            remedy=_AGAIN,
        ),
        _rule(
            "shard-truncated",
            _E,
            "a file is not as long as its header says",
            consequence="Loading ends with `SafetensorError`, after the shards before it were loaded.",
            remedy=_AGAIN,
        ),
        _rule(
            "shard-not-in-index",
            _W,
            "a safetensors file is not named by the index",
            consequence="vLLM does not read it; weights that are only there stay uninitialised.",
            remedy="`repair --rebuild-index` if the file belongs to the model; else remove it.",
        ),
        _rule(
            "mistral-format",
            _W,
            "there are weights in Mistral's own format (params.json, consolidated*.safetensors)",
            consequence="vLLM reads these alone, with params.json instead of config.json. They were not judged: their "
            "tensors have other names.",
            remedy="None is needed. For the folder's other files: `--load-format safetensors --config-format hf`.",
        ),
        _rule(
            "consolidated-stray",
            _E,
            "there is a consolidated*.safetensors beside the model's files, but no params.json",
            consequence="vLLM reads consolidated*.safetensors alone, with config.json: what is not in it under the "
            "model's names stays uninitialised, or loading ends with an error.",
            remedy="Remove it, or copy params.json if it is Mistral's own.",
        ),
        _rule(
            "index-unreadable",
            _E,
            "model.safetensors.index.json is not a valid index",
            consequence="vLLM and transformers end with an error when they read it.",
            remedy="`repair --rebuild-index`.",
        ),
        _rule(
            "index-missing",
            _W,
            "several safetensors files without an index",
            consequence="vLLM reads every file it finds; a stray one overwrites weights. transformers cannot load it.",
            remedy="`repair --rebuild-index`.",
        ),
        _rule(
            "index-names-absent",
            _E,
            "the index places a tensor in a file that does not hold it",
            consequence=f"transformers fails. {_SILENT}",
            remedy="If the tensor is in another file: `repair --rebuild-index`. If it is in none: get the shard again.",
        ),
        _rule(
            "index-omits",
            _W,
            "a file holds tensors that the index does not name",
            consequence="vLLM loads them all the same; transformers and other tools do not see them.",
            remedy="`repair --rebuild-index`.",
        ),
        _rule(
            "tensor-duplicate",
            _W,
            "a tensor stands in two files",
            consequence="The file that is read last wins; which one that is depends on file names and loader.",
            remedy="Remove the stray file, then `repair --rebuild-index`.",
        ),
        _rule(
            "doubled-prefix",
            _E,
            "tensor names repeat a part of their prefix",
            consequence="vLLM ends with `There is no module or parameter named`, or with a KeyError.",
            remedy="Export again with the right names; the merge that wrote them added a prefix twice.",
        ),
        _rule(
            "config-unreadable",
            _E,
            "config.json is missing or is not a JSON object",
            consequence="vLLM cannot tell which model this is and ends.",
            remedy="Copy config.json from the base model, then restore its quantization_config.",
        ),
        _rule(
            "config-num-layers",
            _E,
            "num_hidden_layers is not the number of layers in the files",
            consequence="With fewer than there are, vLLM ends with a KeyError or drops layers; with more, layers stay "
            "uninitialised.",
            remedy="`repair --restore-config --base DIR`; typical of a config that leaked from a one-layer template.",
        ),
        _rule(
            "config-layer-types",
            _E,
            "layer_types does not name a kind for each layer",
            consequence="transformers ends with `num_hidden_layers must be equal to the number of layer_types`; with a "
            "config class that does not look, layers are built as another kind.",
            remedy="`repair --restore-config --base DIR`; typical of a config that leaked from a one-layer template.",
        ),
        _rule(
            "config-vocab-size",
            _E,
            "vocab_size is not the number of rows of the embedding",
            consequence="vLLM's embedding loader ends with an AssertionError without a message.",
            remedy="`repair --restore-config --base DIR`.",
        ),
        _rule(
            "config-hidden-size",
            _E,
            "hidden_size is not the width of the embedding",
            consequence="Loading ends with a shape mismatch.",
            remedy="`repair --restore-config --base DIR`.",
        ),
        _rule(
            "config-token-id",
            _E,
            "a token id of the config is outside the vocabulary",
            consequence="An eos that cannot be generated never ends an answer; a pad or bos outside the embedding is "
            "an index error or a CUDA assertion.",
            remedy="`repair --restore-config --base DIR`.",
        ),
        _rule(
            "layer-incomplete",
            _W,
            "a layer lacks modules that layers of its kind have",
            consequence=_SILENT,
            remedy="Check the shard that should hold them; a merge may have lost it.",
        ),
        _rule(
            "surroundings-missing",
            _E,
            "the embedding, the final norm or the head is not there",
            consequence="An unquantized model ends with `Following weights were not initialized from checkpoint`. For "
            "a quantized one nothing is checked: the embedding and the head keep uninitialised memory, the norm ones; "
            "the server reports healthy and answers noise.",
            remedy="Check the shard that should hold them; a merge may have lost it. If the head is the embedding, "
            "say so: `tie_word_embeddings`.",
        ),
        _rule(
            "quant-config-missing",
            _E,
            "tensors are quantized, but no config says so",
            consequence="vLLM builds an unquantized model and fails at the first packed tensor or unknown scale.",
            remedy="Restore quantization_config in config.json from the tool that quantized the model.",
        ),
        _rule(
            "quant-method-disagrees",
            _E,
            "quant_method and the tensors are not of the same format",
            consequence="vLLM builds parameters with other names: loading ends with a KeyError, or scales are never "
            "loaded.",
            remedy="Write the quant_method of the tool that made the tensors (see `inspect`).",
        ),
        _rule(
            "quant-method-not-judged",
            _W,
            "the quant_method is none that this tool knows",
            consequence="Its scales and its list of exclusions were not looked at. vLLM may serve it (it does awq, "
            "gptq, quark and others).",
            remedy="None is needed; ask the model a question before you rely on it.",
        ),
        _rule(
            "quant-algo-unsupported",
            _E,
            "modelopt's quant_algo is none that vLLM serves",
            consequence="vLLM ends with `ModelOpt currently only supports`, or with `Missing 'quant_algo'`.",
            remedy="Write the algorithm that the tensors have (see `inspect`), or quantize again with a known one.",
        ),
        _rule(
            "quant-configs-differ",
            _W,
            "config.json and hf_quant_config.json disagree",
            consequence="vLLM reads config.json first; other tools and releases read hf_quant_config.json.",
            remedy="`repair --restore-ignore` writes the same exclusions to both.",
        ),
        _rule(
            "ignore-empty",
            _E,
            "nothing is ignored, yet Linears are not quantized",
            consequence="vLLM builds these layers as quantized: loading ends with a shape mismatch, or `weight_scale "
            "was never loaded`; older releases serve noise.",
            remedy="`repair --restore-ignore`.",
        ),
        _rule(
            "ignore-lacks",
            _E,
            "a Linear is not quantized, but not ignored either",
            consequence="vLLM builds the layer as quantized: loading ends with a shape mismatch, or `weight_scale "
            "was never loaded`; older releases serve noise.",
            remedy="`repair --restore-ignore`.",
        ),
        _rule(
            "ignored-but-quantized",
            _E,
            "a quantized layer is ignored",
            consequence="vLLM builds the layer unquantized and fails at the packed weight, or at its scales.",
            remedy="`repair --restore-ignore`.",
        ),
        _rule(
            "gate-quantized",
            _E,
            "the gate of a shared expert is quantized",
            consequence="vLLM never builds it quantized, whatever the list says: it fails at the packed weight, or at "
            "its scales.",
            remedy="Quantize again and exclude `shared_expert_gate` (`re:.*shared_expert_gate$` for llm-compressor).",
        ),
        _rule(
            "fused-partly-quantized",
            _E,
            "layers that vLLM fuses (q/k/v, gate/up) are only in part quantized, or in different formats",
            consequence="vLLM fuses them into one layer and ends with `Detected some but not all shards`.",
            remedy="Quantize again and exclude all or none of the group.",
        ),
        _rule(
            "scale-missing",
            _E,
            "a quantized layer lacks a weight scale",
            consequence=f"0.33 notices a missing block scale; for the rest: {_SILENT}",
            remedy="Get the shard again, or quantize again.",
        ),
        _rule(
            "scale-extra",
            _E,
            "a scale belongs to no quantized weight",
            consequence="vLLM ends with a KeyError, or with `There is no module or parameter named`.",
            remedy="Check the shard that should hold the weight; else quantize again.",
        ),
        _rule(
            "scale-shape",
            _E,
            "a scale has not the shape or type that its weight needs",
            consequence="Loading ends with a shape mismatch, or the blocks get the scales of others.",
            remedy="Quantize again: the file was cut, padded or made with another block size.",
        ),
        _rule(
            "input-scale-missing",
            _E,
            "a layer with quantized activations lacks its input scale",
            consequence=f"{_SILENT} Measured on a tiny model through vLLM's own code: mean log-probability error "
            "0.28 against 0.06 for a calibrated one, at times NaN.",
            remedy="Quantize again with real calibration; for a checkpoint of others `repair --set-input-scale 1.0`, "
            "which costs accuracy, or a weight-only backend (Marlin), which does not use it.",
        ),
        _rule(
            "input-scale-ones",
            _W,
            "every input scale is exactly 1.0",
            consequence="The activations were never measured: they lose precision or are clipped. How much "
            "depends on the model: measured on tiny ones, mean log-probability error 0.299 against 0.074 where inner "
            "activations are small, and no loss (0.068 against 0.070) on plain random weights.",
            remedy=f"{_QUANTIZE} A weight-only backend (Marlin) does not use it.",
        ),
        _rule(
            "input-scale-invalid",
            _E,
            "an input scale is not finite, or not above zero",
            consequence="The layer's output is NaN, infinite or zero for every token.",
            remedy=_QUANTIZE,
        ),
        _rule(
            "weight-scale-invalid",
            _E,
            "a weight scale is not finite, or a global one is not above zero",
            consequence="The layer's output is NaN, infinite or zero for every token.",
            remedy="Get the shard again; if its sha256 is right, quantize again.",
        ),
        _rule(
            "weight-scale-zero",
            _E,
            "all block scales of a weight are zero",
            consequence="The layer outputs nothing but zeros.",
            remedy="Get the shard again (an unfinished download holds zeros); if its sha256 is right, quantize again.",
        ),
        _rule(
            "fused-weight-scale-differs",
            _E,
            "layers that vLLM fuses (q/k/v, gate/up) have different global weight scales",
            consequence="vLLM fuses them and keeps one scale (the largest number; for experts that of gate): the "
            "weights of the others are multiplied by the wrong factor. It logs one warning.",
            remedy="Quantize again with a tool that shares the scale between them (modelopt and llm-compressor do).",
        ),
        _rule(
            "fused-input-scale-differs",
            _W,
            "layers that vLLM fuses (q/k/v, gate/up) have different input scales",
            consequence="vLLM fuses them and keeps one scale: activations lose precision or are clipped. It logs one "
            "warning.",
            remedy="Quantize again with a tool that shares the scale between them (modelopt and llm-compressor do).",
        ),
        _rule(
            "weights-not-finite",
            _E,
            "weights are NaN or infinite",
            consequence="The answer is noise, or HTTP 400 `Out of range float values are not JSON compliant`.",
            remedy="Get the shard again; if its sha256 is right, the base model or the quantization is broken.",
        ),
        _rule(
            "against-broken",
            _E,
            "the base model's folder holds no weights, or not all of them",
            consequence="None in vLLM. What the base lacks was not compared.",
            remedy="Finish the download of the base model, or name its folder.",
        ),
        _rule(
            "against-not-compared",
            _W,
            "some Linears could not be compared with the base model's",
            consequence="None in vLLM. Their errors are unknown: the format is not known here, or a file is cut off.",
            remedy="Ask the model a question before you rely on it.",
        ),
        _rule(
            "against-missing",
            _E,
            "the base model lacks a weight or has it in another shape",
            consequence="The checkpoint is not a quantization of that model, or was merged wrongly.",
            remedy="Check that --against names the model that was quantized.",
        ),
        _rule(
            "against-error",
            _E,
            "the weights are further from the base model's than the format allows",
            consequence="The layer computes something else: wrong block order, wrong global scale, or another model.",
            remedy="Check that --against names the model that was quantized; then quantize again.",
        ),
        _rule(
            "tokenizer-missing",
            _W,
            "there is no tokenizer",
            consequence="vLLM ends unless --tokenizer names another folder.",
            remedy="`repair --copy-tokenizer --base DIR`.",
        ),
        _rule(
            "chat-template-missing",
            _W,
            "there is no chat template",
            consequence="/v1/chat/completions answers every request with an error; /v1/completions works.",
            remedy="`repair --copy-tokenizer --base DIR`, or serve with --chat-template; base models have none.",
        ),
        _rule(
            "repair-interrupted",
            _W,
            "a repair in this folder did not come to its end",
            consequence="The files are a mixture of before and after.",
            remedy="Run `repair --in-place` again, with any action: it completes the interrupted one first.",
        ),
    )
}


def finding(code: str, subjects: Iterable[str] = (), detail: str = "") -> Finding:
    """A finding of a known code."""
    return Finding(rule=RULES[code], subjects=tuple(subjects), detail=detail)


def markdown() -> str:
    """The table of docs/checkpoints.md."""
    rows = [
        f"| `{rule.code}` | {rule.severity} | {rule.title} | {rule.consequence} | {rule.remedy} |"
        for rule in RULES.values()
    ]
    head = ["| code | severity | what | consequence in vLLM | remedy |", "| --- | --- | --- | --- | --- |"]
    return "\n".join(head + rows)
