"""Makes the KV caches float16, bfloat16 or int8, with the native attention operators that read and write them.

New keys and values are rounded when they are stored. In every call, of one token or of a prompt's chunk, a token
attends to its own key and value unrounded and to all others as they are stored; all other arithmetic stays as it is.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from vlkv.errors import EngineError
from vlkv.storage.manifest import cache_row
from vlkv_export.passes.edit import MICROSOFT, NATIVE, attend_instead, first_slots, sizes

OPERATORS = {"float16": "AttendFloat16", "bfloat16": "AttendBFloat16", "int8": "AttendInt8"}
TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16, "int8": ir.DataType.INT8}
CACHES = ("key_cache.", "value_cache.", "new_key_cache.", "new_value_cache.")


def apply(model: ir.Model, *, dtype: str, many: int = 0) -> int:
    """Replaces each GroupQueryAttention, and changes the caches' dtype and, for int8, the size of their rows.

    Applies to: every GroupQueryAttention of the graph; each must be without a window.
    Requires: `float32`, `within_window`, `group_query_attention` and `observed_rows` ran before.

    Args:
        model: changed in place.
        dtype: one of `OPERATORS`.
        many: the precision of prompts' products, as the operator has it: 0 and 2 float32, 1 bfloat16.

    Returns:
        The number of GroupQueryAttention nodes replaced.

    Raises:
        EngineError: a cache is read by another node, so that it must stay float32.
    """
    graph = model.graph
    found = [node for node in graph if node.op_type == "GroupQueryAttention" and node.domain == MICROSOFT]
    if not found:
        return 0
    first = first_slots(graph)
    for node in found:
        if not attend_instead(graph, node, OPERATORS[dtype], first, many):
            raise EngineError(
                f"{node.name}: its lengths are not those of a layer; leave --kv-dtype {dtype} out"
            )
    model.graph.opset_imports[NATIVE] = 1
    common.RemoveUnusedNodesPass()(model)
    for value in (*graph.inputs, *graph.outputs):
        if (value.name or "").startswith(CACHES):
            _narrow(value, dtype)
    return len(found)


def _narrow(value: ir.Value, dtype: str) -> None:
    """Changes one of the caches that the graph takes or returns."""
    users = [use.op_type for use in value.consumers() if use.domain != NATIVE]
    if users:
        raise EngineError(
            f"{value.name} is read by {users[0]}; --kv-dtype {dtype} needs attention that vlkv replaces, leave it out"
        )
    *others, dim = sizes(value)
    if not isinstance(dim, int):
        raise EngineError(f"{value.name} has no fixed head size; leave --kv-dtype {dtype} out")
    value.type = ir.TensorType(TYPES[dtype])
    value.shape = ir.Shape([*others, cache_row(dtype, dim)])
