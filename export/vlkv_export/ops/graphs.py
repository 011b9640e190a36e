"""Graphs of operators alone: `compress`, which evicts from one layer, and single nodes of Evict and Score."""

import onnx_ir as ir
from onnxscript import BOOL, script
from onnxscript.onnx_opset import opset24 as op

from vlkv_export.ops.domain import DOMAIN, OPSET, VERSION
from vlkv_export.ops.evict import Evict
from vlkv_export.ops.library import compiled, functions

IR_VERSION = 11
Dim = int | str
CACHES = ("new_key", "new_value")


@script(default_opset=op)
def compress(key, value, score, length, keep, sinks, recent, capacity, per_head: BOOL, merge: BOOL):
    """Evict with its attributes as inputs."""
    # one selection for all heads equals a selection for each head by the summed scores
    shared = op.ReduceSum(score, op.Constant(value_ints=[1]), keepdims=1)
    ranked = op.Where(per_head, score, shared)
    if merge:
        new_key, new_value, position = Evict(
            key, value, ranked, length, keep, sinks, recent, capacity, per_head=1, merge=1
        )
    else:
        new_key, new_value, position = Evict(
            key, value, ranked, length, keep, sinks, recent, capacity, per_head=1, merge=0
        )
    return new_key, new_value, position


def compress_model(
    dtype: ir.DataType = ir.DataType.FLOAT, kv_heads: Dim = "Hkv", head_dim: Dim = "D"
) -> ir.Model:
    """Make the `compress` graph for caches of `dtype`; sizes are numbers, or names if they vary at run time.

    Inputs: key, value [B, Hkv, C, D] of `dtype`; score [B, Hkv, C] float32; length, keep, sinks, recent [B]
    int64; capacity [] int64; per_head, merge [] bool. Outputs: new_key, new_value [B, Hkv, capacity, D];
    position [B, Hkv, capacity] int32.
    """
    graph = compiled(compress, (*CACHES, "position")).graph
    flags = [(name, ir.DataType.BOOL, ()) for name in ("per_head", "merge")]
    return _evict_graph(graph, dtype, kv_heads, head_dim, flags)


def evict_model(
    per_head: bool,
    merge: bool,
    dtype: ir.DataType = ir.DataType.FLOAT,
    kv_heads: Dim = "Hkv",
    head_dim: Dim = "D",
) -> ir.Model:
    """Make a graph of one Evict node: `compress` with fixed flags, for runtimes that fail on a Loop in an If.

    Inputs and outputs are those of `compress_model` without per_head and merge.
    """
    inputs = [ir.Value() for _ in Evict.op_signature.inputs]
    flags = {"per_head": int(per_head), "merge": int(merge)}
    node = ir.node("Evict", inputs, flags, domain=DOMAIN, num_outputs=3)
    return _evict_graph(ir.Graph(inputs, node.outputs, nodes=[node]), dtype, kv_heads, head_dim, [])


def score_model(
    scale: float,
    threshold: float,
    dtype: ir.DataType = ir.DataType.FLOAT,
    query_heads: Dim = "Hq",
    kv_heads: Dim = "Hkv",
    head_dim: Dim = "D",
) -> ir.Model:
    """Make a graph of one Score node; sizes are numbers, or names if they vary at run time.

    Inputs: query [B, Hq, W, D], key [B, Hkv, C, D] of `dtype`; row_position [B, W] int64. Outputs: score
    [B, Hkv, C] and sparsity [B], float32.
    """
    inputs = [ir.Value(name=name) for name in ("query", "key", "row_position")]
    node = ir.node("Score", inputs, {"scale": scale, "threshold": threshold}, domain=DOMAIN, num_outputs=2)
    graph = ir.Graph(inputs, node.outputs, nodes=[node])
    query, key = ("B", query_heads, "W", head_dim), ("B", kv_heads, "C", head_dim)
    caches = [("query", dtype, query), ("key", dtype, key)]
    _describe(graph.inputs, [*caches, ("row_position", ir.DataType.INT64, ("B", "W"))])
    floats = ir.DataType.FLOAT
    _describe(graph.outputs, [("score", floats, ("B", kv_heads, "C")), ("sparsity", floats, ("B",))])
    return _finish(graph, "score")


def _evict_graph(graph: ir.Graph, dtype: ir.DataType, kv_heads: Dim, head_dim: Dim, flags: list) -> ir.Model:
    dims = ("B", kv_heads, "C", head_dim)
    caches = [("key", dtype, dims), ("value", dtype, dims), ("score", ir.DataType.FLOAT, dims[:3])]
    counts = [(name, ir.DataType.INT64, ("B",)) for name in ("length", "keep", "sinks", "recent")]
    _describe(graph.inputs, [*caches, *counts, ("capacity", ir.DataType.INT64, ()), *flags])
    dims = ("B", kv_heads, "capacity", head_dim)
    positions = ("position", ir.DataType.INT32, dims[:3])
    _describe(graph.outputs, [*((name, dtype, dims) for name in CACHES), positions])
    return _finish(graph, "compress")


def _describe(values, facts) -> None:
    """Set the names and types of a graph's inputs and outputs."""
    for value, (name, dtype, shape) in zip(values, facts, strict=True):
        value.name = name
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape(shape)


def _finish(graph: ir.Graph, name: str) -> ir.Model:
    graph.name = name
    graph.opset_imports.clear()
    graph.opset_imports.update({"": OPSET, DOMAIN: VERSION})
    used = {(node.domain, node.op_type) for node in graph.all_nodes()}
    carried = [function for function in functions() if function.identifier()[:2] in used]
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="vlkv", functions=carried)
