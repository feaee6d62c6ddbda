"""Quantized checkpoints on disk: read their headers, find what would go wrong in vLLM, mend what is safe to mend."""
