"""Build, prove and run vLLM on the NVIDIA DGX Spark (GB10, compute capability 12.1)."""

__version__ = "0.1.0"
