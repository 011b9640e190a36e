"""Engines for TensorRT and TensorRT for RTX: lowered graphs, shape ranges, and a builder in a process of its own."""
