"""Constants that several operators share."""

THRESHOLD = 0.01
"""p of the sparsity measure (VL-Cache, arXiv 2410.23317): an attention weight under p times its row's largest counts
as zero. The operators' ONNX bodies have it built in."""
