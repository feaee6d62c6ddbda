"""Point vLLM at tuned fused-MoE configurations for GB10: a setting, not a patch.

vLLM looks for block sizes of its Triton MoE kernel in a file named after experts, width, device and type. Up to 0.27 it
ships none for NVIDIA_GB10, from 0.28.0 two, both for block-quantized FP8. Without a file it takes defaults and warns
"Using default MoE config. Performance might be sub-optimal!".

Every release since 0.16.0 looks in the folder named by VLLM_TUNED_CONFIG_FOLDER first. So nothing is edited: set

    VLLM_TUNED_CONFIG_FOLDER=<this checkout>/tuning_configs/fused_moe

The folder holds `E=512,N=512,device_name=NVIDIA_GB10,dtype=fp8_w8a8.json` (per-tensor FP8), which no release ships. What it
applies to, where it comes from and that we did not measure it is said in the .toml next to it.

This row never edits. It reads `upstream` once a release ships that file, so that ours can go.
"""

from sparkwright.patching.model import Because, Contains, NoFile, Patch

_FILE = "vllm/model_executor/layers/fused_moe/configs/E=512,N=512,device_name=NVIDIA_GB10,dtype=fp8_w8a8.json"
_SETTING = "VLLM_TUNED_CONFIG_FOLDER=tuning_configs/fused_moe"

PATCH = Patch(
    title="no tuned configuration of the fused MoE kernel for GB10 with per-tensor FP8: default block sizes are used",
    releases="",
    kind="python",
    category="temporary",
    reference="vllm/model_executor/layers/fused_moe/fused_moe.py, get_moe_configs (0.33.0: line 1111)",
    remove_when="upstream ships the file of the same name",
    guarded_by="tests/patches/test_tuning_configs_load.py",
    setting=_SETTING,
    upstream=(
        Because(
            signs=(Contains(path=_FILE, text='"BLOCK_SIZE_M"'),),
            why="upstream ships this configuration",
        ),
    ),
    not_applicable=(
        Because(
            signs=(
                NoFile(path=_FILE),
                Contains(
                    path="vllm/model_executor/layers/fused_moe/fused_moe.py",
                    text="    user_defined_config_folder = envs.VLLM_TUNED_CONFIG_FOLDER\n",
                    count=1,
                ),
            ),
            why=f"a setting, not a patch: {_SETTING}",
        ),
    ),
)
