"""A plugin of vLLM (entry point group `vllm.general_plugins`) that offers the kernels for the decode of NVFP4 layers.

It does nothing unless GB10_KERNELS=1. Then vLLM chooses its kernels as ever; they keep their weights and take every
batch of more than eight tokens. Where the layout that they keep can be read, smaller batches go to gb10_kernels: no
weight is stored twice. A layer that stays with vLLM alone is named in the log, with the reason.
"""

import os

SWITCH = "GB10_KERNELS"
"""Set to 1 to use the kernels. 0, the default, leaves vLLM as it is."""


def register() -> None:
    """What vLLM calls in each of its processes.

    Raises:
        ValueError: the switch has a value that means nothing.
    """
    wanted = os.environ.get(SWITCH, "0")
    if wanted not in {"0", "1"}:
        raise ValueError(f"{SWITCH}={wanted} means nothing; 1 uses the kernels of gb10_kernels, 0 does not")
    if wanted == "0":
        return
    from gb10_kernels.vllm_plugin import compile_cache, linear, moe
    from gb10_kernels.vllm_plugin.fallback import unusable

    reason = unusable()
    if reason is not None:
        from vllm.logger import init_logger

        init_logger("vllm.gb10_kernels").warning("%s=1, and no layer uses gb10_kernels: %s", SWITCH, reason)
        return
    compile_cache.tell_apart(SWITCH)
    linear.offer()
    moe.offer()
