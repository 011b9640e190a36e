"""Lets the native attention operators read pages of evicted tokens: the decoder's input `recall`.

`recall [B]` int64 says where each prompt's evicted tokens are: the number of a store in `cpp/include/vlkv/recall.h`, 0
for none. The operators read it in calls with one token per prompt.
"""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.passes.edit import NATIVE, operand, sizes

KEYS = "key_cache."
OPERATORS = {"Attend": 6, "AttendFloat32": 7, "AttendBFloat16": 7, "AttendFloat16": 7, "AttendInt8": 7}
"""The operators, and the number of inputs before `recall`."""


def apply(model: ir.Model) -> int:
    """Adds the input to the graph and to each native attention node, and the number of its layer.

    Applies to: decoders whose layers all have a native attention node; others stay as they are.
    Requires: `native_attention` or `native_cache` ran before.

    Returns:
        The number of nodes changed.
    """
    graph = model.graph
    caches = [value for value in graph.inputs if (value.name or "").startswith(KEYS)]
    found = [node for node in graph.all_nodes() if node.domain == NATIVE and node.op_type in OPERATORS]
    layers = {operand(node, 3).name for node in found}
    if not found or layers != {cache.name for cache in caches}:
        return 0
    batch = sizes(caches[0])[0]
    recall = ir.Value(name="recall", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([batch]))
    graph.inputs.append(recall)
    for node in found:
        number = int((operand(node, 3).name or "").removeprefix(KEYS))
        node.resize_inputs(OPERATORS[node.op_type] + 1)
        node.replace_input_with(OPERATORS[node.op_type], recall)
        node.attributes["layer"] = ir.AttrInt64("layer", number)
    return len(found)
