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
        CheckpointError: an If is left that the flag does not decide, or whose branch lies deeper.
    """
    graph = model.graph
    choices = [node for node in graph if node.op_type == "If"]
    if not choices:
        return 0
    flag = next((value for value in graph.inputs if value.name == FLAG), None)
    for node in choices:
        if flag is None or node.inputs[0] is not flag:
            raise refuse(node, f"expected none, or one that the input {FLAG!r} decides")
    for node in choices:
        branch = node.attributes["then_branch"].as_graph()
        for name, value in list(branch.initializers.items()):
            del branch.initializers[name]
            if name in graph.initializers:
                value.name = f"{node.name}.{name}"
            graph.register_initializer(value)
    left = [node.attributes["else_branch"].as_graph() for node in choices]
    count = fixed_flag.apply(model, name=FLAG, value=True)
    for other in left:  # the weights that both branches read have one reader less
        for node in ir.traversal.RecursiveGraphIterator(other):
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
    return count
