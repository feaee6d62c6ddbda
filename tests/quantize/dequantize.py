"""Dequantize every NVFP4 weight of a checkpoint with the tool's own code; run by the tool's Python."""

import sys
from pathlib import Path

import torch  # type: ignore[import-not-found]
from safetensors import safe_open
from safetensors.torch import save_file


def main() -> None:
    """Read the checkpoint of the first argument, write the file of the second."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    tensors: dict[str, torch.Tensor] = {}
    for file in source.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stream:
            tensors |= {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
    found = {}
    for name, packed in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "weight" and packed.dtype == torch.uint8:
            found[module] = modelopt(packed, tensors[f"{module}.weight_scale"], tensors[f"{module}.weight_scale_2"])
        elif part == "weight_packed":
            found[module] = compressed_tensors(
                packed, tensors[f"{module}.weight_scale"], tensors[f"{module}.weight_global_scale"]
            )
    assert found
    save_file(found, target)


def modelopt(packed: torch.Tensor, scale: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """What modelopt's own reader gives."""
    from modelopt.torch.quantization.qtensor import NVFP4QTensor  # type: ignore[import-not-found]

    shape = torch.Size([packed.shape[0], packed.shape[1] * 2])
    stored = NVFP4QTensor(shape, torch.float32, packed)
    result = stored.dequantize(scale=scale, double_scale=whole, block_sizes={-1: 16}, fast=False)
    return result.to(torch.float32).contiguous()


def compressed_tensors(packed: torch.Tensor, scale: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """What compressed-tensors' own decompressor gives."""
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8  # type: ignore[import-not-found]
    from compressed_tensors.quantization import preset_name_to_scheme  # type: ignore[import-not-found]
    from compressed_tensors.quantization.lifecycle.forward import dequantize  # type: ignore[import-not-found]

    values = unpack_fp4_from_uint8(packed, packed.shape[0], packed.shape[1] * 2, dtype=torch.float32)
    how = preset_name_to_scheme("NVFP4", ["Linear"]).weights
    result = dequantize(values, scale.to(torch.float32), args=how, dtype=torch.float32, global_scale=whole)
    return result.contiguous()


if __name__ == "__main__":
    main()
