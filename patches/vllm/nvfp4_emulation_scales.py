"""Read the scales of an emulated NVFP4 layer as they are stored.

The emulation backend (VLLM_USE_NVFP4_CT_EMULATIONS=1) dequantizes the weight and multiplies in 16 bits. It is slow, needs no
FP4 kernel, and is therefore what one compares a kernel with. Up to 0.19 it gives garbage, for two reasons:

* It undoes the 128x4 swizzle that CUTLASS wants of the block scales. Only the CUTLASS backends swizzle them; an emulated
  layer keeps them as loaded, so the scales are shuffled, and a layer whose rows are no multiple of 128 fails.
* It divides by the global scale. A compressed-tensors checkpoint stores a divisor, a ModelOpt checkpoint a factor, and
  vLLM turns both into the factor before this function sees it.

`run_nvfp4_emulations` now dequantizes with linear scales and the factor, as upstream does since 0.20.0. `dequantize_to_dtype` stays
as it is: upstream's own tests call it for swizzled scales. Whether a scale is above or below 1 decides nothing here, so
the mend needs no look at its value, which would stop the GPU and forbid CUDA graphs. Emulation itself still needs
--enforce-eager in these releases: it moves its lookup table to the device at every call.
"""

from sparkwright.patching.model import Because, Contains, Patch, Replace, Variant

_EMULATION = "vllm/model_executor/layers/quantization/utils/nvfp4_emulation_utils.py"
_KERNEL = "vllm/model_executor/kernels/linear/nvfp4/emulation.py"
_SWIZZLED_AND_DIVIDED = """\
    # dequantize weight
    w_fp4 = weight.data.view(torch.uint8)
    w_dq = dequantize_to_dtype(
        w_fp4,
        weight_scale_swizzled.data,
        weight_global_scale,
        output_dtype,
        x.device,
        group_size,
    )
"""
_LINEAR_AND_MULTIPLIED = """\
    # dequantize weight: block scales are linear here, the global scale is a factor
    w_fp4 = break_fp4_bytes(weight.data.view(torch.uint8), torch.float32)
    w_blockscale = weight_scale_swizzled.data.view(torch.float8_e4m3fn)
    w_blockscale = w_blockscale.to(torch.float32) * weight_global_scale
    w_dq = w_fp4.reshape(*w_blockscale.shape, group_size) * w_blockscale.unsqueeze(-1)
    w_dq = w_dq.reshape(w_fp4.shape).to(output_dtype)
"""

PATCH = Patch(
    title="NVFP4 emulation unswizzles linear scales and divides by the global scale: every result is garbage",
    releases="<0.20",
    kind="python",
    category="temporary",
    reference=f"{_EMULATION}, run_nvfp4_emulations (0.19.1: line 126) and dequantize_to_dtype (line 60)",
    remove_when="no release line below 0.20 is built",
    guarded_by="tests/patches/test_nvfp4_emulation_scales.py",
    variants=(Variant(edits=(Replace(path=_EMULATION, old=_SWIZZLED_AND_DIVIDED, new=_LINEAR_AND_MULTIPLIED),)),),
    upstream=(
        Because(
            signs=(
                Contains(path=_EMULATION, text="tensor_sf.to(torch.float32) * global_scale\n", count=1),
                Contains(path=_KERNEL, text="            swizzle=False,\n", count=1),
            ),
            why="the emulation kernel asks for linear scales and multiplies by the global scale",
            releases=">=0.20",
        ),
    ),
)
