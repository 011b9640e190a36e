"""Merged decoders: the branch of an `If` that reads past caches is the decoder; it takes empty ones too.

Optimum's merged decoders and onnx-community's have a boolean input `use_cache_branch` that decides one If around the
whole graph. The branch with past becomes the graph; `check` runs it on a prompt from empty caches.
"""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.adopt.forms.spec import refuse
from vlkv_export.passes import fixed_flag

FLAG = "use_cache_branch"


def take_branch(model: ir.Model) -> int:
    """Inlines the branch with past of a merged decoder. Returns the number of Ifs replaced, 0 for other graphs.

    Raises:
        CheckpointError: an If is left, in the graph or inside the branch: the flag does not decide it, or not it alone.
    """
    count = fixed_flag.apply(model, name=FLAG, value=True)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "If":
            raise refuse(node, f"expected none, or one that the input {FLAG!r} alone decides")
    return count
