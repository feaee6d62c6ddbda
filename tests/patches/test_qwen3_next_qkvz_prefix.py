"""qwen3-next-qkvz-prefix: the releases name in_proj_qkvz once; a tree that names it twice is reported."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patches.upstream_code import extract

from sparkwright.patching.model import Status
from sparkwright.patching.plan import Finding, examine_series
from sparkwright.patching.series import load_series, select
from sparkwright.patching.tree import DirectoryTree, OverlayTree

pytestmark = pytest.mark.sources

NAME = "qwen3-next-qkvz-prefix"
MODELS = "vllm/model_executor/models"
LAYERS = "vllm/model_executor/layers/mamba"
WHERE = [
    ("0.17.0", f"{MODELS}/qwen3_next.py", "Qwen3NextGatedDeltaNet"),
    ("0.17.0", f"{MODELS}/qwen3_5.py", "Qwen3_5GatedDeltaNet"),
    ("0.19.1", f"{LAYERS}/gdn_linear_attn.py", "GatedDeltaNetAttention"),
    ("0.33.0", f"{LAYERS}/gdn/qwen_gdn_linear_attn.py", "QwenGatedDeltaNetAttention"),
]


def _finding(tree: Path, version: str, changes: dict[str, bytes] | None = None) -> Finding:
    series = select(load_series("vllm"), (NAME,))
    return examine_series(series, OverlayTree(DirectoryTree(tree), dict(changes or {})), version)[0]


def _name_of_layer(file: Path, owner: str) -> str:
    """The name the real create_qkvz_proj gives the layer that its caller calls `linear_attn.in_proj_qkvz`."""
    names: list[str] = []

    def linear(*, prefix: str, **_: object) -> None:
        names.append(prefix)

    create = extract(file, f"{owner}.create_qkvz_proj", MergedColumnParallelLinear=linear)
    owner_object = type("Layer", (), {"gqa_interleaved_layout": True})()
    create(owner_object, 64, 8, 8, None, prefix="linear_attn.in_proj_qkvz")
    return names[0]


@pytest.mark.parametrize(("version", "path", "owner"), WHERE)
def test_a_doubled_name_is_reported_where_it_would_be(
    version: str, path: str, owner: str, vllm_tree: Callable[[str], Path], tmp_path: Path
) -> None:
    tree = vllm_tree(version)
    assert _name_of_layer(tree / path, owner) == "linear_attn.in_proj_qkvz"
    assert _finding(tree, version).status is Status.UPSTREAM

    head, _, rest = (tree / path).read_text(encoding="utf-8").partition("    def create_qkvz_proj(\n")
    doubled = (
        head + "    def create_qkvz_proj(\n" + rest.replace("prefix=prefix,", 'prefix=f"{prefix}.in_proj_qkvz",', 1)
    )
    (tmp_path / "doubled.py").write_text(doubled, encoding="utf-8")
    assert _name_of_layer(tmp_path / "doubled.py", owner) == "linear_attn.in_proj_qkvz.in_proj_qkvz"
    found = _finding(tree, version, {path: doubled.encode()})
    assert found.status is Status.DRIFTED
    assert path in found.reason


def test_0_16_has_no_such_function(vllm_tree: Callable[[str], Path]) -> None:
    assert _finding(vllm_tree("0.16.0"), "0.16.0").status is Status.NOT_APPLICABLE
