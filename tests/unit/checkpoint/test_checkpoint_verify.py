"""Every fault is found by its code, alone; sound checkpoints have none; garbage never ends in a traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize
from safetensors.numpy import save_file

from sparkwright.checkpoint.findings import RULES
from sparkwright.checkpoint.headers import HeaderError, read_shard
from sparkwright.checkpoint.inspection import inspect
from sparkwright.checkpoint.repair import Actions, repair_in_place
from sparkwright.checkpoint.verify import verify, verify_headers
from sparkwright.errors import InputUnreadableError

if TYPE_CHECKING:
    from tests.unit.checkpoint.conftest import Model

Make = Callable[[str], "Model"]
FIRST = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
DOWN = "model.layers.0.mlp.down_proj"


def codes(root: Path) -> list[str]:
    return [one.rule.code for one in verify(root, sample=0).findings]


@pytest.mark.parametrize("kind", ["base", "modelopt", "packed"])
def test_sound_checkpoints_have_no_finding(make: Make, tmp_path: Path, kind: str) -> None:
    result = verify(make(kind).write(tmp_path / "model"), against=make("base").write(tmp_path / "base"), sample=0)
    assert result.findings == ()
    assert result.not_compared == ()
    assert result.exit_code == 0
    assert len(result.differences) == 31  # 27 quantized, the head, two routers, mtp.fc


@pytest.mark.parametrize("kind", ["modelopt", "packed"])
def test_the_gate_of_a_shared_expert_needs_no_exclusion(make: Make, tmp_path: Path, kind: str) -> None:
    model = make(kind)
    _add_shared_gates(model)
    assert verify(model.write(tmp_path / "model")).findings == ()


def _scalar(value: float) -> Callable[["Model"], None]:
    def edit(model: "Model") -> None:
        for name in model.tensors:
            if name.endswith(".input_scale"):
                model.tensors[name] = np.array(value, dtype=np.float32)

    return edit


def _set(name: str, value: object) -> Callable[["Model"], None]:
    def edit(model: "Model") -> None:
        model.tensors[name] = np.asarray(value)

    return edit


def _drop(name: str) -> Callable[["Model"], None]:
    return lambda model: model.tensors.__delitem__(name)


def _config(**values: object) -> Callable[["Model"], None]:
    return lambda model: model.config.update(values)


def _quantization(**values: object) -> Callable[["Model"], None]:
    def edit(model: "Model") -> None:
        model.config["quantization_config"] = model.config["quantization_config"] | values
        if "ignore" in values and model.hf_quant is not None:
            model.hf_quant["quantization"]["exclude_modules"] = values["ignore"]
        if "quant_algo" in values and model.hf_quant is not None:
            model.hf_quant["quantization"]["quant_algo"] = values["quant_algo"]

    return edit


def _poke(name: str, place: int, byte: int) -> Callable[["Model"], None]:
    def edit(model: "Model") -> None:
        raw = model.tensors[name].copy()
        raw.view(np.uint8).reshape(-1)[place] = byte
        model.tensors[name] = raw

    return edit


def _rename(old: str, new: str) -> Callable[["Model"], None]:
    def edit(model: "Model") -> None:
        model.tensors = {name.replace(old, new): value for name, value in model.tensors.items()}

    return edit


def _cast(name: str) -> Callable[["Model"], None]:
    def edit(model: "Model") -> None:
        model.tensors[name] = model.tensors[name].astype(np.float32)

    return edit


def _unquantize(module: str) -> Callable[["Model"], None]:
    def edit(model: "Model") -> None:
        rows, columns = model.tensors[f"{module}.weight"].shape
        for part in ("weight_scale", "weight_scale_2", "input_scale"):
            del model.tensors[f"{module}.{part}"]
        model.tensors[f"{module}.weight"] = np.ones((rows, columns * 2), dtype=ml_dtypes.bfloat16)

    return edit


def _forget_quantization(model: "Model") -> None:
    del model.config["quantization_config"]
    model.hf_quant = None


def _lose_head(model: "Model") -> None:
    model.config["tie_word_embeddings"] = False
    del model.tensors["lm_head.weight"]


GATES = ["model.layers.1.mlp.shared_expert_gate", "model.layers.2.mlp.shared_expert_gate"]


def _add_shared_gates(model: "Model") -> None:
    for gate in GATES:
        model.tensors[f"{gate}.weight"] = np.ones((1, 64), dtype=ml_dtypes.bfloat16)


def _quantize_shared_gates(model: "Model") -> None:
    for gate in GATES:
        model.tensors |= {
            f"{gate}.weight": np.ones((1, 32), dtype=np.uint8),
            f"{gate}.weight_scale": np.ones((1, 4), dtype=ml_dtypes.float8_e4m3fn),
            f"{gate}.weight_scale_2": np.array(1, dtype=np.float32),
            f"{gate}.input_scale": np.array(0.5, dtype=np.float32),
        }


EVERYTHING_ELSE_IGNORED = ["lm_head", "mtp.fc", "model.layers.1.mlp.gate", "model.layers.2.mlp.gate"]

# One edit of a sound modelopt checkpoint, the code that finds it, and a tensor (or field) that is named.
TENSOR_FAULTS: list[tuple[str, str, Callable[["Model"], None]]] = [
    ("input-scale-missing", f"{DOWN}.input_scale", _drop(f"{DOWN}.input_scale")),
    ("input-scale-ones", f"{DOWN}.input_scale", _scalar(1.0)),
    ("input-scale-invalid", f"{DOWN}.input_scale", _scalar(0.0)),
    ("input-scale-invalid", f"{DOWN}.input_scale", _set(f"{DOWN}.input_scale", np.float32("nan"))),
    ("input-scale-invalid", f"{DOWN}.input_scale", _set(f"{DOWN}.input_scale", np.float32("inf"))),
    ("input-scale-invalid", f"{DOWN}.input_scale", _set(f"{DOWN}.input_scale", np.float32(-0.1))),
    ("scale-missing", f"{DOWN}.weight_scale", _drop(f"{DOWN}.weight_scale")),
    ("scale-missing", f"{DOWN}.weight_scale_2", _drop(f"{DOWN}.weight_scale_2")),
    ("scale-extra", "lm_head.weight_scale", _set("lm_head.weight_scale", np.ones((128, 4), dtype=np.float32))),
    ("scale-extra", f"{DOWN}.weight_global_scale", _set(f"{DOWN}.weight_global_scale", np.ones(1, dtype=np.float32))),
    ("scale-shape", f"{DOWN}.weight_scale", _set(f"{DOWN}.weight_scale", np.ones((64, 5), ml_dtypes.float8_e4m3fn))),
    ("scale-shape", f"{DOWN}.weight_scale", _cast(f"{DOWN}.weight_scale")),
    ("scale-shape", f"{DOWN}.weight_scale_2", _set(f"{DOWN}.weight_scale_2", np.ones(2, dtype=np.float32))),
    ("weight-scale-invalid", f"{DOWN}.weight_scale", _poke(f"{DOWN}.weight_scale", 3, 0x7F)),
    ("weight-scale-invalid", f"{DOWN}.weight_scale", _poke(f"{DOWN}.weight_scale", -1, 0xFF)),
    ("weight-scale-invalid", f"{DOWN}.weight_scale", _poke(f"{DOWN}.weight_scale", 5, 0x90)),
    ("weight-scale-invalid", f"{DOWN}.weight_scale_2", _set(f"{DOWN}.weight_scale_2", np.float32("nan"))),
    ("weight-scale-invalid", f"{DOWN}.weight_scale_2", _set(f"{DOWN}.weight_scale_2", np.float32(0))),
    (
        "weight-scale-zero",
        f"{DOWN}.weight_scale",
        _set(f"{DOWN}.weight_scale", np.zeros((64, 6), ml_dtypes.float8_e4m3fn)),
    ),
    (
        "fused-weight-scale-differs",
        "model.layers.1.self_attn.k_proj.weight_scale_2",
        _set("model.layers.1.self_attn.k_proj.weight_scale_2", np.float32(3e-4)),
    ),
    (
        "fused-weight-scale-differs",
        "model.layers.2.mlp.experts.1.up_proj.weight_scale_2",
        _set("model.layers.2.mlp.experts.1.up_proj.weight_scale_2", np.float32(3e-4)),
    ),
    (
        "fused-input-scale-differs",
        "model.layers.0.mlp.up_proj.input_scale",
        _set("model.layers.0.mlp.up_proj.input_scale", np.float32(0.004)),
    ),
    ("fused-partly-quantized", "model.layers.0.mlp.up_proj.weight", _unquantize("model.layers.0.mlp.up_proj")),
    ("ignore-lacks", f"{DOWN}.weight", _unquantize(DOWN)),
    ("ignore-lacks", "lm_head.weight", _quantization(ignore=EVERYTHING_ELSE_IGNORED[1:])),
    (
        "ignore-lacks",
        "mtp.fc.weight",
        _quantization(ignore=[one for one in EVERYTHING_ELSE_IGNORED if one != "mtp.fc"]),
    ),
    ("ignore-lacks", "model.layers.2.mlp.gate.weight", _quantization(ignore=EVERYTHING_ELSE_IGNORED[:-1])),
    ("ignore-empty", "lm_head.weight", _quantization(ignore=[])),
    (
        "ignored-but-quantized",
        f"{DOWN}.weight",
        _quantization(ignore=[*EVERYTHING_ELSE_IGNORED, "*layers.0.mlp.down*"]),
    ),
    ("ignored-but-quantized", f"{DOWN}.weight", _quantization(ignore=[*EVERYTHING_ELSE_IGNORED, DOWN])),
    # vLLM makes one layer of a block's experts: the exclusion of one excludes them all.
    (
        "ignored-but-quantized",
        "model.layers.1.mlp.experts.1.down_proj.weight",
        _quantization(ignore=[*EVERYTHING_ELSE_IGNORED, "model.layers.1.mlp.experts.0.gate_proj"]),
    ),
    ("quant-method-disagrees", f"{DOWN}.weight", _quantization(quant_method="compressed-tensors")),
    ("quant-method-disagrees", f"{DOWN}.weight", _quantization(quant_algo="FP8")),
    ("quant-algo-unsupported", "", _quantization(quant_algo="NVFP4_SVD")),
    ("quant-algo-unsupported", "", _quantization(quant_algo=None)),
    ("gate-quantized", f"{GATES[0]}.weight", _quantize_shared_gates),
    (
        "quant-config-missing",
        f"{DOWN}.weight",
        _forget_quantization,
    ),
    (
        "quant-configs-differ",
        "exclusions",
        lambda m: m.hf_quant["quantization"].update(exclude_modules=[]) if m.hf_quant else None,
    ),
    ("doubled-prefix", "model.model.norm.weight", _rename("model.norm", "model.model.norm")),
    ("config-num-layers", "model.layers.2", _config(num_hidden_layers=2)),
    ("config-num-layers", "model.layers.3", _config(num_hidden_layers=4)),
    ("config-num-layers", "model.layers.1", _config(num_hidden_layers=1)),
    ("config-layer-types", "layer_types", _config(layer_types=["full_attention"])),
    ("config-layer-types", "mlp_layer_types", _config(mlp_layer_types=["dense"] * 4)),
    ("config-vocab-size", "model.embed_tokens.weight", _config(vocab_size=2, eos_token_id=1)),
    ("config-hidden-size", "model.embed_tokens.weight", _config(hidden_size=63)),
    ("config-token-id", "pad_token_id = 300", _config(pad_token_id=300)),
    ("config-token-id", "eos_token_id = 128", _config(eos_token_id=[2, 128])),
    ("config-token-id", "bos_token_id = -1", _config(bos_token_id=-1)),
    (
        "layer-incomplete",
        "model.layers.1.self_attn.o_proj",
        lambda m: _drop_module(m, "model.layers.1.self_attn.o_proj"),
    ),
    ("surroundings-missing", "model: no embedding", _drop("model.embed_tokens.weight")),
    ("surroundings-missing", "model: no final norm", _drop("model.norm.weight")),
    ("surroundings-missing", "lm_head", _lose_head),
    (
        "weights-not-finite",
        "model.norm.weight",
        _set("model.norm.weight", np.full(64, np.inf, dtype=ml_dtypes.bfloat16)),
    ),
    (
        "weights-not-finite",
        "lm_head.weight",
        _set("lm_head.weight", np.full((128, 64), np.nan, dtype=ml_dtypes.bfloat16)),
    ),
    ("weights-not-finite", f"{DOWN}.weight", _set(f"{DOWN}.weight_scale_2", np.float32(3e38))),
    ("chat-template-missing", "", lambda m: m.tokenizer.clear()),
]


def _drop_module(model: "Model", module: str) -> None:
    for name in [one for one in model.tensors if one.startswith(f"{module}.")]:
        del model.tensors[name]


@pytest.mark.parametrize(("code", "subject", "edit"), TENSOR_FAULTS)
def test_one_fault_is_found_and_nothing_else(
    make: Make, tmp_path: Path, code: str, subject: str, edit: Callable[["Model"], object]
) -> None:
    model = make("modelopt")
    edit(model)
    result = verify(model.write(tmp_path / "model"), sample=0)
    assert [one.rule.code for one in result.findings] == [code]
    assert not subject or subject in result.findings[0].subjects
    assert result.exit_code == (2 if RULES[code].severity == "error" else 1)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"tie_word_embeddings": True},
        {"architectures": ["Qwen3MoeForTokenClassification"], "tie_word_embeddings": False},
    ],
)
def test_a_model_may_have_no_head(make: Make, tmp_path: Path, told: dict[str, object]) -> None:
    model = make("base")
    del model.tensors["lm_head.weight"]
    model.config.update(told)
    assert codes(model.write(tmp_path / "model")) == []


def test_a_model_without_the_outer_prefix_is_an_embedding_model_or_a_draft(make: Make, tmp_path: Path) -> None:
    model = make("base")
    _lose_head(model)
    _drop("model.norm.weight")(model)
    _rename("model.", "")(model)
    assert codes(model.write(tmp_path / "model")) == []


def test_the_base_gives_a_leaked_list_of_layers_back(make: Make, tmp_path: Path) -> None:
    model, base = make("modelopt"), make("base")
    base.config["layer_types"] = ["full_attention"] * 3
    model.config["layer_types"] = ["full_attention"]
    root = model.write(tmp_path / "model")
    repair_in_place(root, Actions(restore_config=True, base=base.write(tmp_path / "base")))
    assert codes(root) == []


PACKED_FAULTS: list[tuple[str, Callable[["Model"], object]]] = [
    ("input-scale-missing", _drop(f"{DOWN}.input_global_scale")),
    ("scale-missing", _drop(f"{DOWN}.weight_global_scale")),
    ("weight-scale-invalid", _set(f"{DOWN}.weight_global_scale", np.array([np.inf], dtype=np.float32))),
    ("input-scale-invalid", _set(f"{DOWN}.input_global_scale", np.array([0], dtype=np.float32))),
    (
        "fused-weight-scale-differs",
        _set("model.layers.0.self_attn.v_proj.weight_global_scale", np.array([4000], dtype=np.float32)),
    ),
    ("ignore-lacks", _quantization(ignore=["lm_head", "re:.*mlp.gate$"])),
    ("ignore-lacks", _quantization(ignore=["lm_head", "mtp.fc", "re:[", "mlp.gate"])),
    ("ignored-but-quantized", _quantization(ignore=["lm_head", "mtp.fc", "re:.*mlp.gate$", "re:.*o_proj"])),
    ("quant-method-disagrees", _quantization(quant_method="modelopt")),
]


@pytest.mark.parametrize(("code", "edit"), PACKED_FAULTS)
def test_faults_of_packed_checkpoints(make: Make, tmp_path: Path, code: str, edit: Callable[["Model"], object]) -> None:
    model = make("packed")
    edit(model)
    assert codes(model.write(tmp_path / "model")) == [code]


def test_weight_only_checkpoints_need_no_input_scale(make: Make, tmp_path: Path) -> None:
    model = make("packed")
    for name in [one for one in model.tensors if one.endswith("input_global_scale")]:
        del model.tensors[name]
    model.config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = None
    root = model.write(tmp_path / "model")
    assert codes(root) == []
    assert inspect(verify_headers(root).checkpoint)["format"].endswith("weights only (W4A16)")


def _index(root: Path) -> dict[str, str]:
    return json.loads((root / INDEX).read_text())["weight_map"]  # type: ignore[no-any-return]


def _write_index(root: Path, places: object) -> None:
    (root / INDEX).write_text(json.dumps({"weight_map": places}))


def _second_copy(root: Path) -> None:
    shutil.copy(root / FIRST, root / "consolidated.safetensors")


def _second_copy_without_index(root: Path) -> None:
    _second_copy(root)
    (root / INDEX).unlink()


def _second_copy_of_mistral(root: Path) -> None:
    _second_copy(root)
    (root / "params.json").write_text("{}")


def test_a_rebuilt_index_leaves_mistrals_copy_out(make: Make, tmp_path: Path) -> None:
    root = make("modelopt").write(tmp_path / "model")
    before = _index(root)
    _second_copy(root)
    _forget(root)
    repair_in_place(root, Actions(rebuild_index=True))
    assert _index(root) == before


def _misplace(root: Path) -> None:
    places = _index(root)
    name = next(name for name, file in places.items() if file == FIRST)
    _write_index(root, places | {name: SECOND})


def _forget(root: Path) -> None:
    _write_index(root, dict(list(_index(root).items())[1:]))


def _cut(root: Path) -> None:
    with (root / SECOND).open("r+b") as stream:
        stream.truncate((root / SECOND).stat().st_size - 1)


def _lengthen(root: Path) -> None:
    with (root / SECOND).open("ab") as stream:
        stream.write(b"\0")


def _twice(root: Path) -> None:
    ones = np.ones(64, dtype=np.float32)
    save_file({"model.norm.weight": ones, "model.norm.bias": ones}, root / "model-3.safetensors")
    _write_index(root, _index(root) | {"model.norm.bias": "model-3.safetensors"})


FILE_FAULTS: list[tuple[set[str], Callable[[Path], object]]] = [
    ({"shard-unreadable"}, lambda root: (root / FIRST).write_bytes(b"")),
    ({"shard-unreadable"}, lambda root: (root / FIRST).write_bytes(b"\xff" * 100)),
    ({"shard-truncated"}, _cut),
    ({"shard-truncated"}, _lengthen),
    ({"shard-not-in-index"}, lambda root: shutil.copy(root / FIRST, root / "other.safetensors")),
    ({"consolidated-stray"}, _second_copy),
    ({"consolidated-stray", "index-missing"}, _second_copy_without_index),
    ({"mistral-format"}, _second_copy_of_mistral),
    ({"index-unreadable", "index-missing"}, lambda root: (root / INDEX).write_text("{")),
    ({"index-unreadable", "index-missing"}, lambda root: _write_index(root, {"a": "../secret"})),
    ({"index-unreadable", "index-missing"}, lambda root: _write_index(root, {"a": ["x"]})),
    ({"index-missing"}, lambda root: (root / INDEX).unlink()),
    ({"index-names-absent"}, _misplace),
    ({"index-omits"}, _forget),
    ({"tensor-duplicate"}, _twice),
    ({"tokenizer-missing"}, lambda root: (root / "tokenizer.json").unlink()),
    ({"repair-interrupted"}, lambda root: _touch(root / ".sparkwright/repair.pending.json")),
]


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.touch()


@pytest.mark.parametrize(("expected", "damage"), FILE_FAULTS)
def test_faults_of_files(make: Make, tmp_path: Path, expected: set[str], damage: Callable[[Path], object]) -> None:
    root = make("modelopt").write(tmp_path / "model")
    damage(root)
    assert set(codes(root)) == expected


def test_a_missing_shard_is_named(make: Make, tmp_path: Path) -> None:
    root = make("base").write(tmp_path / "model")
    (root / SECOND).unlink()
    found = verify(root).findings
    assert [(one.rule.code, one.subjects) for one in found] == [("shard-missing", (SECOND,))]


def test_a_folder_without_anything(tmp_path: Path) -> None:
    assert set(codes(tmp_path)) == {
        "weights-missing",
        "config-unreadable",
        "tokenizer-missing",
        "chat-template-missing",
    }
    with pytest.raises(InputUnreadableError):
        verify(tmp_path / "nowhere")


def test_the_cut_off_tensor_is_named(make: Make, tmp_path: Path) -> None:
    root = make("modelopt").write(tmp_path / "model")
    _cut(root)
    shard = read_shard(root / SECOND)
    found = next(one for one in verify(root).findings if one.rule.code == "shard-truncated")
    assert found.subjects == (shard.tensors[-1].name,)


def test_another_model_is_not_the_base(make: Make, tmp_path: Path) -> None:
    root = make("modelopt").write(tmp_path / "model")
    other = make("base")
    other.tensors[f"{DOWN}.weight"] = -other.tensors[f"{DOWN}.weight"]
    result = verify(root, against=other.write(tmp_path / "other"))
    assert [(one.rule.code, one.subjects) for one in result.findings] == [("against-error", (DOWN,))]
    less = make("base")
    del less.tensors[f"{DOWN}.weight"]
    result = verify(root, against=less.write(tmp_path / "less"))
    assert [(one.rule.code, one.subjects) for one in result.findings] == [("against-missing", (f"{DOWN}.weight",))]


def test_a_head_that_the_base_ties_is_compared_with_its_embedding(make: Make, tmp_path: Path) -> None:
    base, model = make("base"), make("modelopt")
    del base.tensors["lm_head.weight"]
    model.tensors["lm_head.weight"] = model.tensors["model.embed_tokens.weight"]
    assert verify(model.write(tmp_path / "model"), against=base.write(tmp_path / "base")).findings == ()


def _stack_experts(model: "Model") -> None:
    """As transformers saves mixtures: gate and up of all experts in one tensor, down in another."""
    for layer in (1, 2):
        experts = f"model.layers.{layer}.mlp.experts"
        parts = [
            [model.tensors.pop(f"{experts}.{one}.{name}_proj.weight") for name in ("gate", "up", "down")]
            for one in range(2)
        ]
        model.tensors[f"{experts}.gate_up_proj"] = np.stack([np.concatenate(part[:2]) for part in parts])
        model.tensors[f"{experts}.down_proj"] = np.stack([part[2] for part in parts])


def test_single_experts_are_compared_with_their_part_of_the_stack(make: Make, tmp_path: Path) -> None:
    base = make("base")
    _stack_experts(base)
    result = verify(make("modelopt").write(tmp_path / "model"), against=base.write(tmp_path / "base"), sample=0)
    assert (result.findings, result.not_compared, len(result.differences)) == ((), (), 31)
    exchanged = make("modelopt")
    first, second = (f"model.layers.1.mlp.experts.{one}.up_proj.weight" for one in range(2))
    exchanged.tensors[first], exchanged.tensors[second] = exchanged.tensors[second], exchanged.tensors[first]
    result = verify(exchanged.write(tmp_path / "exchanged"), against=tmp_path / "base", sample=0)
    assert [(one.rule.code, len(one.subjects)) for one in result.findings] == [("against-error", 2)]


def test_what_could_not_be_compared_is_said(make: Make, tmp_path: Path) -> None:
    base = make("base")
    base.tensors = {
        name: np.swapaxes(one, 1, 2).copy() if one.ndim == 3 else one for name, one in _stacked(base).items()
    }
    result = verify(make("modelopt").write(tmp_path / "model"), against=base.write(tmp_path / "base"))
    assert [(one.rule.code, one.detail) for one in result.findings] == [("against-not-compared", "12 of 31")]


def test_a_stack_with_its_inputs_first_is_what_was_quantized(make: Make, tmp_path: Path) -> None:
    """As modelopt writes the experts of Llama 4, packed along the inputs too."""
    base, model = make("base"), make("modelopt")
    names, inputs, outputs = [f"model.layers.{one}.feed_forward.experts.gate_up_proj" for one in (1, 2)], 64, 96
    for name in names:
        base.tensors[name] = np.ones((2, inputs, outputs), np.float16)
        model.tensors[name] = np.zeros((2, inputs // 2, outputs), np.uint8)
        model.tensors[f"{name}_weight_scale"] = np.ones((2, inputs // 16, outputs), ml_dtypes.float8_e4m3fn)
        model.tensors[f"{name}_weight_scale_2"] = np.ones((), np.float32)
        model.tensors[f"{name}_input_scale"] = np.full((), 0.5, np.float32)
    written = base.write(tmp_path / "base")
    result = verify(model.write(tmp_path / "model"), against=written)
    assert [(one.rule.code, one.subjects) for one in result.findings] == [("against-not-compared", tuple(names))]
    assert result.checkpoint.modules[names[0]].shape == (2, outputs, inputs)
    base.tensors[names[0]] = np.ones((2, inputs, 2 * outputs), np.float16)
    result = verify(tmp_path / "model", against=base.write(tmp_path / "other"))
    assert [one.rule.code for one in result.findings] == ["against-missing", "against-not-compared"]


def _stacked(model: "Model") -> dict[str, np.ndarray[Any, Any]]:
    _stack_experts(model)
    return model.tensors


def test_a_broken_base_is_named(make: Make, tmp_path: Path) -> None:
    root, base = make("modelopt").write(tmp_path / "model"), make("base").write(tmp_path / "base")
    _cut(base)
    broken, rest = verify(root, against=base).findings
    assert (broken.rule.code, rest.rule.code) == ("against-broken", "against-not-compared")
    assert broken.subjects == ("shard-truncated: mtp.fc.weight",)
    (base / SECOND).unlink()
    assert {one.rule.code for one in verify(root, against=base).findings} == {"against-broken", "against-not-compared"}
    for path in base.iterdir():
        path.unlink()
    found = verify(root, against=base).findings
    assert [(one.rule.code, one.subjects) for one in found] == [("against-broken", ("weights-missing",))]


def _mixed(model: "Model", algorithm: str) -> None:
    """The layers' algorithms one by one: the head in BF16, everything else in `algorithm`."""
    layers = {
        name.removesuffix(".weight_scale"): {"quant_algo": algorithm}
        for name in model.tensors
        if "weight_scale" in name
    }
    model.config["quantization_config"] = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    model.hf_quant = {
        "quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers, "exclude_modules": []}
    }


def test_mixed_precision_goes_by_its_own_list(make: Make, tmp_path: Path) -> None:
    model = make("modelopt")
    _mixed(model, "NVFP4")
    assert codes(model.write(tmp_path / "good")) == []
    for name in [one for one in model.tensors if one.endswith(".input_scale")]:
        del model.tensors[name]
    assert codes(model.write(tmp_path / "bad")) == ["input-scale-missing"]
    _mixed(model, "W4A16_NVFP4")
    assert codes(model.write(tmp_path / "weights-only")) == []
    other = make("modelopt")
    _mixed(other, "FP8")
    assert codes(other.write(tmp_path / "other")) == ["quant-method-disagrees"]


def test_formats_whose_scales_are_not_known_are_left_alone(make: Make, tmp_path: Path) -> None:
    model = make("base")
    model.tensors |= {
        f"{DOWN}.weight": np.ones((64, 96), dtype=np.int8),
        f"{DOWN}.weight_scale": np.ones((64, 1), dtype=np.float32),
    }
    groups = {"group_0": {"weights": {"num_bits": 8, "type": "int"}, "targets": ["re:.*layers.0.mlp.down_proj"]}}
    model.config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "ignore": ["lm_head"],
        "config_groups": groups,
    }
    root = model.write(tmp_path / "model")
    assert codes(root) == []
    assert inspect(verify_headers(root).checkpoint)["format"] == "INT8"


def test_exchanged_nibbles_are_far_beyond_the_bound(make: Make, tmp_path: Path) -> None:
    model = make("modelopt")
    packed = model.tensors[f"{DOWN}.weight"]
    model.tensors[f"{DOWN}.weight"] = (packed << 4) | (packed >> 4)
    result = verify(model.write(tmp_path / "model"), against=make("base").write(tmp_path / "base"))
    assert [one.rule.code for one in result.findings] == ["against-error"]
    assert next(one.error for one in result.differences if one.module == DOWN) > 1


def test_a_bound_of_ones_own(make: Make, tmp_path: Path) -> None:
    root, base = make("modelopt").write(tmp_path / "model"), make("base").write(tmp_path / "base")
    result = verify(root, against=base, limit=0.05)
    assert [one.rule.code for one in result.findings] == ["against-error"]
    assert len(result.findings[0].subjects) == 27


def test_every_code_has_a_test() -> None:
    tested = {code for code, _, _ in TENSOR_FAULTS} | {code for codes, _ in FILE_FAULTS for code in codes}
    assert set(RULES) - tested == {
        "shard-missing",
        "weights-missing",
        "config-unreadable",
        "against-error",
        "against-missing",
        "against-broken",
        "against-not-compared",
        "quant-method-not-judged",
    }


def test_the_headers_are_those_that_the_library_writes(make: Make, tmp_path: Path) -> None:
    root = make("modelopt").write(tmp_path / "model")
    for file in (FIRST, SECOND):
        ours = {tensor.name: tensor for tensor in read_shard(root / file).tensors}
        raw = (root / file).read_bytes()
        theirs = dict(deserialize(raw))  # type: ignore[no-untyped-call]
        assert set(ours) == set(theirs)
        for name, one in ours.items():
            assert (one.dtype, list(one.shape)) == (theirs[name]["dtype"], theirs[name]["shape"])
            assert raw[one.offset : one.offset + one.nbytes] == theirs[name]["data"]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_damaged_files_never_end_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = _copy_of_sound(tmp_path_factory)
    file = root / data.draw(st.sampled_from([FIRST, SECOND, INDEX, "config.json", "hf_quant_config.json"]))
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 6))):
        if content:
            place = data.draw(st.integers(0, min(len(content), 4000) - 1))
            content[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    _judge_all(root)


@settings(max_examples=30, deadline=None)
@given(
    key=st.sampled_from(["quantization_config", "text_config", "num_hidden_layers", "vocab_size", "eos_token_id"]),
    value=_JSON,
    nested=st.sampled_from([None, "ignore", "config_groups", "quantized_layers", "quant_method", "quantization"]),
)
def test_strange_configs_never_end_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object, nested: str | None
) -> None:
    root = _copy_of_sound(tmp_path_factory)
    config = json.loads((root / "config.json").read_text())
    config[key] = value if nested is None else {**config["quantization_config"], nested: value}
    (root / "config.json").write_text(json.dumps(config))
    _judge_all(root)


@settings(max_examples=40, deadline=None)
@given(
    header=st.dictionaries(
        st.text(max_size=20),
        _JSON | st.fixed_dictionaries({"dtype": _JSON, "shape": _JSON, "data_offsets": _JSON}),
        max_size=3,
    )
)
def test_strange_headers_never_end_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, header: object) -> None:
    root = _copy_of_sound(tmp_path_factory)
    text = json.dumps(header).encode()
    (root / FIRST).write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 16)
    _judge_all(root)


def _entry(begin: int, end: int) -> str:
    return json.dumps({"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]})


HOSTILE = {
    "nested": "[" * 100_000,
    "nested objects": '{"a":' * 100_000,
    "half a character": f'{{"\\ud800": {_entry(0, 0)}}}',
    "control characters": f'{{"a\\u001b[31m": {_entry(0, 0)}}}',
    "no shape": '{"a": {"dtype": "F32"}}',
    "a number without end": "9" * 5000,
    "twice": f'{{"a": {_entry(0, 2)}, "a": {_entry(0, 2)}}}',
    "gap": f'{{"a": {_entry(1, 2)}}}',
    "overlap": f'{{"a": {_entry(0, 2)}, "b": {_entry(1, 3)}}}',
    "size": '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
    "truth for a number": '{"a": {"dtype": "U8", "shape": [true], "data_offsets": [0, 1]}}',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_headers_are_refused(tmp_path: Path, text: str) -> None:
    raw = text.encode()
    (tmp_path / "x.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    with pytest.raises(HeaderError):
        read_shard(tmp_path / "x.safetensors")


_SOUND: list[Path] = []


@pytest.fixture(autouse=True)
def _keep_a_sound_one(make: Make, tmp_path_factory: pytest.TempPathFactory) -> None:
    if not _SOUND:
        _SOUND.append(make("modelopt").write(tmp_path_factory.mktemp("kept") / "model"))


def _copy_of_sound(factory: pytest.TempPathFactory) -> Path:
    root = factory.mktemp("damaged") / "model"
    shutil.copytree(_SOUND[0], root)
    return root


def _judge_all(root: Path) -> None:
    """All that reads a folder, to the end; what it prints must be printable."""
    result = verify(root)
    json.dumps(result.to_json()).encode()
    json.dumps(inspect(result.checkpoint)).encode()
    for one in result.findings:
        for subject in one.subjects:
            subject.encode()
