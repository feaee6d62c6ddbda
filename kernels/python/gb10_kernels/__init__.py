"""NVFP4 kernels for the decode of one to eight tokens, as torch operators and as a plugin of vLLM.

Importing this loads no library: `ops`, `selftest` and the plugin do when they are used.
"""

__version__ = "0.1.0"
