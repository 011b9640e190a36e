"""Inlines the ONNX bodies of vlkv's operators, for builders without the plugin."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from vlkv_export.ops import DOMAIN
from vlkv_export.passes.edit import remove_unused_functions


def apply(model: ir.Model) -> int:
    """Replaces each node of the domain `vlkv` by its function's body.

    Applies to: every node of the domain; none is left.

    Returns:
        The number of nodes replaced.
    """
    nodes = [node for node in model.graph if node.domain == DOMAIN]
    if not nodes:
        return 0
    common.InlinePass()(model)
    remove_unused_functions(model)
    return len(nodes)
