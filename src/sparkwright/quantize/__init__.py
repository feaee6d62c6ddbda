"""Quantize a model to NVFP4 with modelopt, one decoder layer at a time, on one node or on several."""
