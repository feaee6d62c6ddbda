"""Quantise with upstream's own Python, for test_quantize_upstream.py: vLLM's ref_nvfp4_quant, modelopt's NVFP4QTensor.

    python upstream_rules.py VLLM_EMULATION_UTILS INPUT.npz OUTPUT.npz

Of vLLM's module only the functions of the rule are run, as the module itself needs an installed vLLM.
"""

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]
from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor  # type: ignore[import-not-found]

NAMES = {"FLOAT4_E2M1_MAX_RECIPROCAL", "get_reciprocal", "cast_to_fp4", "ref_nvfp4_quant"}


def vllm_rule(module: Path) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """The function ref_nvfp4_quant of the module's source."""
    wanted = []
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        names = (
            {target.id for target in node.targets if isinstance(target, ast.Name)}
            if isinstance(node, ast.Assign)
            else set()
        )
        if isinstance(node, ast.FunctionDef):
            names = {node.name}
        if names & NAMES:
            wanted.append(node)
    space: dict[str, Any] = {"torch": torch, "FLOAT4_E2M1_MAX": 6.0}
    exec(compile(ast.Module(wanted, []), str(module), "exec"), space)
    assert space.keys() >= NAMES
    rule: Callable[..., tuple[torch.Tensor, torch.Tensor]] = space["ref_nvfp4_quant"]
    return rule


def main() -> None:
    """Quantise every case of INPUT: `x` in float32 that a 16-bit type holds, and the two global scales."""
    rule, cases, results = vllm_rule(Path(sys.argv[1])), np.load(sys.argv[2]), {}
    for name in sorted({key.rsplit(":", 1)[0] for key in cases}):
        dtype = torch.bfloat16 if name.startswith("bfloat16") else torch.float16
        x = torch.from_numpy(cases[f"{name}:x"]).to(dtype)
        values, scale = rule(x.clone(), torch.tensor(float(cases[f"{name}:g"]), dtype=torch.float32), 16)
        results[f"{name}:vllm-values"] = values.numpy()
        results[f"{name}:vllm-scale"] = scale.numpy()
        g2 = torch.tensor(float(cases[f"{name}:g2"]), dtype=torch.float32)
        made, block_scale, _ = NVFP4QTensor.quantize(x.clone(), 16, weights_scaling_factor_2=g2)
        results[f"{name}:modelopt-codes"] = made._quantized_data.numpy()
        results[f"{name}:modelopt-scale"] = block_scale.view(torch.uint8).numpy()
    np.savez(sys.argv[3], **results)


if __name__ == "__main__":
    main()
