"""The operators' bodies in place of their nodes, for builders without the plugin."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from vlkv_export.ops import DOMAIN
from vlkv_export.passes.edit import remove_unused_functions


def inline_bodies(model: ir.Model) -> int:
    """Puts the body of each `vlkv` function where the graph calls it; none is left."""
    nodes = [node for node in model.graph if node.domain == DOMAIN]
    if not nodes:
        return 0
    common.InlinePass()(model)
    remove_unused_functions(model)
    return len(nodes)
