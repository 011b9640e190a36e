"""The operators of domain `vlkv`, version 1, as ONNX functions, and graphs that consist of them alone.

`functions()` returns the functions that a model with `vlkv` nodes includes; `compress_model` makes the third graph of
a graph directory; `python -m vlkv_export.ops` writes the reference graphs that `vlkv.ops` runs.
"""

from vlkv_export.ops.domain import DOMAIN, OPSET, VERSION
from vlkv_export.ops.graphs import compress_model, evict_model, score_model
from vlkv_export.ops.library import function_protos, functions, select_highest

__all__ = [
    "DOMAIN",
    "OPSET",
    "VERSION",
    "compress_model",
    "evict_model",
    "function_protos",
    "functions",
    "score_model",
    "select_highest",
]
