"""Engines for TensorRT and TensorRT for RTX: lowered graphs, shape ranges, and a builder in a separate process."""
