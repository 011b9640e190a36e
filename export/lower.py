"""Which passes make a graph directory's graphs fit a backend, and in which order."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from vlkv.export.passes.edit import MICROSOFT
from vlkv.export.passes.float32 import compute_in_float32
from vlkv.export.passes.group_query_attention import use_group_query_attention
from vlkv.export.passes.multi_head_attention import use_multi_head_attention
from vlkv.export.passes.observed_rows import give_out_observed_rows
from vlkv.export.passes.transposed_weights import fuse_transposed_weights

GRAPHS = ("vision", "decoder", "compress")


def lower_for_onnxruntime(
    models: dict[str, ir.Model], converted: dict[str, ir.TensorProtocol], operators: str
) -> dict[str, dict[str, int]]:
    """Lowers the three graphs in place.

    Args:
        models: the graphs by name.
        converted: float32 tensors that take the place of 16-bit initializers, by name.
        operators: `native` leaves scoring to the runtime's kernels, `functions` keeps the ONNX bodies.

    Returns:
        How often each pass rewrote, by graph and pass.
    """
    counts: dict[str, dict[str, int]] = {}
    for name, model in models.items():
        done = counts[name] = {}
        done["float32"] = compute_in_float32(model, converted)
        if name == "vision":
            done["multi_head_attention"] = use_multi_head_attention(model)
        if name == "decoder":
            done["group_query_attention"] = use_group_query_attention(model)
            if operators == "native":
                done["observed_rows"] = give_out_observed_rows(model)
        done["transposed_weights"] = fuse_transposed_weights(model)
        model.graph.opset_imports[MICROSOFT] = 1
        common.RemoveUnusedNodesPass()(model)
        common.RemoveUnusedFunctionsPass()(model)
    return counts
