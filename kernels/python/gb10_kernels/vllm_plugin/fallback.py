"""What stays with vLLM, and why."""

from gb10_kernels.library import NotBuiltError, load


def unusable() -> str | None:
    """Why the kernels cannot be used in this process at all, or None."""
    from vllm import envs

    if envs.VLLM_BATCH_INVARIANT:
        return "VLLM_BATCH_INVARIANT=1 wants the same result in every batch, and they take the small ones only"
    try:
        load()
    except NotBuiltError as error:
        return str(error)
    return None


def tell(layer: str, reason: str | None) -> None:
    """Log where a layer's small batches go: to gb10_kernels, or to vLLM for a reason."""
    from vllm.logger import init_logger

    logger = init_logger("vllm.gb10_kernels")
    if reason is None:
        logger.debug("%s: up to 8 tokens go to gb10_kernels", layer)
        logger.info_once("gb10_kernels takes up to 8 tokens at a time; layers that stay with vLLM are named")
    else:
        logger.warning("%s stays with vLLM's own kernel: %s", layer, reason)
