"""vLLM's compile cache, which must not give a graph with the kernels to a process without them, or the reverse."""

from vllm import envs

from gb10_kernels import __version__


def tell_apart(switch: str) -> None:
    """Make the switch, and the kernels' version, part of the key of what this process compiles.

    vLLM keys by its variables and its configuration, not by the linear kernels that it chose, and has no function to
    add to that. Its `additional_config` is meant for it, but a plugin sees no configuration before layers are made, and
    the language part of a multimodal model is compiled with a copy that is older than its layers. Hence the entry in
    the table of variables, until vLLM's key has the kernels or a plugin can add to it.
    """
    envs.environment_variables[switch] = lambda: f"1 {__version__}"
