"""Let VLLM_MARLIN_INPUT_DTYPE=fp8 run on compute capability 12.1.

With FP8 activations Marlin multiplies 4-bit weights on the FP8 tensor cores (W4A8). Its instruction,
`mma.sync.aligned.m16n8k32 ... e4m3.e4m3`, exists on 8.9 and on the whole SM12x family, but upstream asked for exactly
8.9 or 12.0, in several places that all must agree:

* Python, get_marlin_input_dtype (up to 0.21): refuses at start, the message names SM120 only.
* csrc, dense GEMM, marlin.cu (up to 0.22.1): refuses at the first forward pass. Upstream mended Python and the MoE
  operator in 0.22.0 and forgot this one until 0.23.0, so 0.22.x starts and then fails for a dense model.
* csrc, MoE, marlin_moe_wna16/ops.cu (up to 0.21).
* the kernel generators (up to 0.21): they write the FP8 kernels only when the build's arch list holds 8.9 or 12.0. Only
  0.19 lets 12.1 into that list; the others turn 12.1a into 12.0, and their generators are left as they are.

No setting avoids it but leaving FP8 activations out: unset VLLM_MARLIN_INPUT_DTYPE (16-bit activations) or set it to int8.
Whether W4A8 is faster than W4A16 on GB10 was not measured.
"""

from sparkwright.patching.model import Because, Contains, Patch, Replace, Variant

_PYTHON = "vllm/model_executor/layers/quantization/utils/marlin_utils.py"
_DENSE = "csrc/quantization/marlin/marlin.cu"
_MOE = "csrc/moe/marlin_moe_wna16/ops.cu"

_EXACT_PYTHON = """\
        if not current_platform.is_device_capability(
            89
        ) and not current_platform.is_device_capability(120):
            raise ValueError(
                "Marlin W4A8-FP8 only support SM89 or SM120 device "
"""
_FAMILY_PYTHON = """\
        if not current_platform.is_device_capability(
            89
        ) and not current_platform.is_device_capability_family(120):
            raise ValueError(
                "Marlin W4A8-FP8 only support SM89 or SM12x device "
"""
_EXACT_CSRC = """\
        major_capability * 10 + minor_capability == 89 ||
            major_capability * 10 + minor_capability == 120,
        "Marlin W4A8-FP8 only support SM89 or SM120 device (It is slower than "
"""
_FAMILY_CSRC = """\
        major_capability * 10 + minor_capability == 89 ||
            major_capability == 12,
        "Marlin W4A8-FP8 only support SM89 or SM12x device (It is slower than "
"""
_EXACT_GENERATOR = """\
    if arch in [89, 120]:
        SUPPORT_FP8 = True
"""
_FAMILY_GENERATOR = """\
    if arch == 89 or arch // 10 == 12:
        SUPPORT_FP8 = True
"""

_REFUSALS = (
    Replace(path=_PYTHON, old=_EXACT_PYTHON, new=_FAMILY_PYTHON),
    Replace(path=_DENSE, old=_EXACT_CSRC, new=_FAMILY_CSRC),
    Replace(path=_MOE, old=_EXACT_CSRC, new=_FAMILY_CSRC),
)
_GENERATORS = tuple(
    Replace(path=f"csrc/{folder}/generate_kernels.py", old=_EXACT_GENERATOR, new=_FAMILY_GENERATOR)
    for folder in ("quantization/marlin", "moe/marlin_moe_wna16")
)


def _mended(releases: str, csrc: str) -> Because:
    return Because(
        signs=(
            Contains(path=_PYTHON, text=_FAMILY_PYTHON, count=1),
            Contains(path=f"{csrc}/quantization/marlin/marlin.cu", text=_FAMILY_CSRC, count=1),
            Contains(path=f"{csrc}/moe/marlin_moe_wna16/ops.cu", text=_FAMILY_CSRC, count=1),
        ),
        why="Python, the dense and the MoE operator accept the SM12x family",
        releases=releases,
    )


PATCH = Patch(
    title="VLLM_MARLIN_INPUT_DTYPE=fp8 is refused on 12.1, at start or at the first forward pass",
    releases="<0.23",
    kind="native",
    category="temporary",
    reference="csrc/quantization/marlin/marlin.cu (0.22.1: line 405), marlin_utils.py get_marlin_input_dtype (0.21.0: line 480)",
    remove_when="no release line below 0.23 is built",
    guarded_by="tests/patches/test_marlin_fp8_input_sm121.py",
    objects=(
        "**/quantization/marlin/marlin.cu.o",
        "**/moe/marlin_moe_wna16/ops.cu.o",
        "**/sm89_kernel_*.cu.o",
    ),
    variants=(
        Variant(releases="<0.19", edits=_REFUSALS),
        Variant(releases=">=0.19,<0.20", edits=_REFUSALS + _GENERATORS),
        Variant(releases=">=0.20,<0.22", edits=_REFUSALS),
        Variant(
            releases=">=0.22",
            edits=(Replace(path=_DENSE, old=_EXACT_CSRC, new=_FAMILY_CSRC),),
            requires=(
                Contains(path=_PYTHON, text=_FAMILY_PYTHON, count=1),
                Contains(path=_MOE, text=_FAMILY_CSRC, count=1),
            ),
        ),
    ),
    upstream=(
        _mended(">=0.23,<0.24", "csrc"),
        _mended(">=0.24,<0.32", "csrc/libtorch_stable"),
        _mended(">=0.32", "csrc"),
    ),
)
