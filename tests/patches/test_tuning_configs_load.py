"""vLLM finds the tuned configurations by VLLM_TUNED_CONFIG_FOLDER, and Triton compiles every entry for GB10."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.patches.upstream_code import extract

from sparkwright.paths import TUNING_CONFIGS
from sparkwright.pins import lines
from sparkwright.run import run

pytestmark = pytest.mark.sources

FOLDER = TUNING_CONFIGS / "fused_moe"
KERNEL = "vllm/model_executor/layers/fused_moe/fused_moe.py"
FP8 = FOLDER / "E=512,N=512,device_name=NVIDIA_GB10,dtype=fp8_w8a8.json"
SHARED_MEMORY = 99 * 1024

TRITON = """
import ast
import importlib.util
import json
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

source, config, scratch = sys.argv[1:]
text = open(source, encoding="utf-8").read()
lines = text.splitlines()
module = "import triton\\nimport triton.language as tl\\n\\n\\n"
for node in ast.parse(text).body:
    if isinstance(node, ast.FunctionDef) and node.name in ("write_zeros_to_output", "fused_moe_kernel"):
        module += "\\n".join(lines[node.decorator_list[0].lineno - 1 : node.end_lineno]) + "\\n\\n\\n"
open(scratch, "w", encoding="utf-8").write(module)
spec = importlib.util.spec_from_file_location("kernels", scratch)
kernels = importlib.util.module_from_spec(spec)
sys.modules["kernels"] = kernels
spec.loader.exec_module(kernels)
kernel = kernels.fused_moe_kernel

pointers = {"a_ptr": "*fp8e4nv", "b_ptr": "*fp8e4nv", "c_ptr": "*bf16", "b_bias_ptr": "*bf16", "a_scale_ptr": "*fp32",
            "b_scale_ptr": "*fp32", "topk_weights_ptr": "*fp32", "sorted_token_ids_ptr": "*i32",
            "expert_ids_ptr": "*i32", "num_tokens_post_padded_ptr": "*i32"}
# Per-tensor FP8 without blocks, as a checkpoint for which vLLM reads a file without block_shape.
fixed = {"group_n": 0, "group_k": 0, "naive_block_assignment": False, "MUL_ROUTED_WEIGHT": False, "top_k": 10,
         "compute_type": tl.bfloat16, "use_fp8_w8a8": True, "use_int8_w8a8": False, "use_int8_w8a16": False,
         "per_channel_quant": False, "HAS_BIAS": False, "SWAP_AB": False, "USE_TD": False, "SPLIT_K": 1,
         "stride_ak": 1, "stride_bk": 1, "stride_cn": 1}
aligned = {*pointers, "N", "K", "EM", "stride_am", "stride_be", "stride_bn", "stride_cm"}
names = [parameter.name for parameter in kernel.params]

shared = {}
for tokens, blocks in json.loads(config).items():
    constants = {name: value for name, value in (fixed | blocks).items() if name in names}
    compiled = triton.compile(
        ASTSource(
            fn=kernel,
            signature={name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names},
            constexprs={(names.index(name),): value for name, value in constants.items()},
            attrs={(index,): [["tt.divisibility", 16]] for index, name in enumerate(names) if name in aligned},
        ),
        target=GPUTarget("cuda", 121, 32),
        options={"num_warps": blocks["num_warps"], "num_stages": blocks["num_stages"]},
    )
    shared[tokens] = compiled.metadata.shared
print(json.dumps(shared))
"""


def _found(tree: Path, *, experts: int, width: int, dtype: str | None, folder: Path | None) -> dict[int, object] | None:
    """What the real loader finds on GB10."""
    platform = SimpleNamespace(get_device_name=lambda _=0: "NVIDIA GB10")
    utils = tree / "vllm/utils/platform_utils.py"
    spelled = {}
    if "def get_device_name_as_file_name" in utils.read_text(encoding="utf-8"):
        spelled["get_device_name_as_file_name"] = extract(
            utils, "get_device_name_as_file_name", current_platform=platform, re=re
        )
    file_name = extract(tree / KERNEL, "get_config_file_name", current_platform=platform, **spelled)
    loader = extract(
        tree / KERNEL,
        "get_moe_configs",
        get_config_file_name=file_name,
        envs=SimpleNamespace(
            VLLM_TUNED_CONFIG_FOLDER=None if folder is None else str(folder), VLLM_BATCH_INVARIANT=False
        ),
        vllm_is_batch_invariant=lambda: False,
        os=os,
        json=json,
        __file__=str(tree / KERNEL),
    )
    found: dict[int, object] | None = loader(experts, width, dtype)
    return found


@pytest.mark.parametrize("version", lines())
def test_the_folder_gives_what_upstream_lacks(version: str, vllm_tree: Callable[[str], Path]) -> None:
    tree = vllm_tree(version)
    stated = json.loads(FP8.read_text(encoding="utf-8"))
    del stated["triton_version"]
    assert _found(tree, experts=512, width=512, dtype="fp8_w8a8", folder=None) is None
    found = _found(tree, experts=512, width=512, dtype="fp8_w8a8", folder=FOLDER)
    assert found == {int(tokens): blocks for tokens, blocks in stated.items()}
    assert _found(tree, experts=512, width=256, dtype="fp8_w8a8", folder=FOLDER) is None
    assert _found(tree, experts=512, width=512, dtype=None, folder=FOLDER) is None


def test_triton_compiles_every_entry_for_gb10_within_its_shared_memory(
    vllm_tree: Callable[[str], Path], build_python: Path, tmp_path: Path
) -> None:
    entries = json.loads(FP8.read_text(encoding="utf-8"))
    del entries["triton_version"]
    kernel = vllm_tree("0.33.0") / KERNEL
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    answer = run([build_python, "-c", TRITON, kernel, json.dumps(entries), tmp_path / "kernels.py"], env=environment)
    shared = json.loads(answer.splitlines()[-1])
    assert set(shared) == set(entries)
    for tokens, blocks in entries.items():
        tiles = (blocks["BLOCK_SIZE_M"] + blocks["BLOCK_SIZE_N"]) * blocks["BLOCK_SIZE_K"]
        assert shared[tokens] == (blocks["num_stages"] - 1) * tiles
        assert shared[tokens] <= SHARED_MEMORY
