"""Whether the files of a model have the names that a quantized layer would be written under."""

import pytest

from sparkwright.errors import ConfigurationError
from sparkwright.quantize.gates import check_names

STORED = (
    "language_model.model.layers.0.self_attn.q_proj.weight",
    "language_model.model.layers.0.moe.input_linear.weight",
)


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.layers.0.self_attn.q_proj.weight_scale_2",
        "language_model.model.layers.0.moe.experts.3.gate_proj.weight",
    ],
)
def test_names_of_the_files_and_of_single_experts_are_known(name: str) -> None:
    check_names([name], STORED)


@pytest.mark.parametrize(
    "name",
    [
        "model.language_model.layers.0.self_attn.q_proj.weight",
        "language_model.model.layers.0.mlp.experts.3.gate_proj.weight",
        "language_model.model.layers.0.self_attn.k_proj.weight",
    ],
)
def test_names_in_memory_alone_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="has another name in the files"):
        check_names([name], STORED)
