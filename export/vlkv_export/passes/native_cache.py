"""Makes the KV caches float16, bfloat16 or int8, with the native attention operators that read and write them.

New keys and values are rounded when they are stored, and every call, of one token or of a prompt's chunk, attends over
what is stored; all other arithmetic stays as it is.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from vlkv.errors import EngineError
from vlkv.storage.manifest import cache_row
from vlkv_export.passes.edit import MICROSOFT, NATIVE, like, new_node, operand, replace, row_of_layer, sizes

OPERATORS = {"float16": "AttendFloat16", "bfloat16": "AttendBFloat16", "int8": "AttendInt8"}
TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16, "int8": ir.DataType.INT8}
CACHES = ("key_cache.", "value_cache.", "new_key_cache.", "new_value_cache.")
INT32 = ir.DataType.INT32


def apply(model: ir.Model, *, dtype: str) -> int:
    """Replaces each GroupQueryAttention, and changes the caches' dtype and, for int8, the size of their rows.

    Applies to: every GroupQueryAttention of the graph; each must be without a window.
    Requires: `float32`, `within_window`, `group_query_attention` and `observed_rows` ran before.

    Returns:
        The number of GroupQueryAttention nodes replaced.

    Raises:
        EngineError: a cache is read by another node, so that it must stay float32.
    """
    graph = model.graph
    found = [node for node in graph if node.op_type == "GroupQueryAttention" and node.domain == MICROSOFT]
    if not found:
        return 0
    first = _first(graph)
    for node in found:
        results = [like(value) for value in node.outputs]
        last, layer = row_of_layer(operand(node, 5))
        if layer is None:
            raise EngineError(
                f"{node.name}: its lengths are not those of a layer; leave --kv-dtype {dtype} out"
            )
        attend = new_node(
            OPERATORS[dtype],
            [*node.inputs[:5], last, first],
            results,
            {"scale": node.attributes.get_float("scale", 0.0), "layer": layer},
            domain=NATIVE,
            name=node.name,
        )
        replace(graph, node, [attend], dict(zip(node.outputs, results, strict=True)))
        graph.remove(node, safe=True)
    model.graph.opset_imports[NATIVE] = 1
    common.RemoveUnusedNodesPass()(model)
    for value in (*graph.inputs, *graph.outputs):
        if (value.name or "").startswith(CACHES):
            _narrow(value, dtype)
    return len(found)


def _first(graph: ir.Graph) -> ir.Value:
    """The slots `[L,B]` int32 of the first new tokens: the graph input `length`."""
    length = next(value for value in graph.inputs if value.name == "length")
    first = ir.Value(name="first_slots", type=ir.TensorType(INT32))
    cast = new_node("Cast", [length], [first], {"to": INT32}, name="first_slots/Cast")
    graph.insert_before(next(iter(graph)), [cast])
    return first


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
