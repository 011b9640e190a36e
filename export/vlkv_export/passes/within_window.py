"""Removes the masks of sliding windows, for engines whose prompts and answers end within the window."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from vlkv_export.passes.edit import window_of


def apply(model: ir.Model) -> int:
    """Removes the sliding windows from the masks of Attention nodes.

    Applies to: an Attention whose mask is `And(causal, slot > last - window)`.
    Requires: no prompt and answer are longer than the window (`vlkv_export.targets.windows`).

    Returns:
        The number of masks changed.
    """
    found = 0
    for node in model.graph:
        bound = window_of(node.inputs[3]) if node.op_type == "Attention" and len(node.inputs) == 4 else None
        if bound is not None:
            node.replace_input_with(3, bound[0])
            found += 1
    common.RemoveUnusedNodesPass()(model)
    return found
