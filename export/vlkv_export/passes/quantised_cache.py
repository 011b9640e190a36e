"""Makes the KV caches of `GroupQueryAttention` int8 or float8, with constant scales, which ONNX Runtime has since 1.31.

The operator rounds new keys and values as it writes them: `round(x / scale)`, within -128 to 127, or float8 E4M3,
within -448 to 448. Score reads keys too; its body gets them times their scale, in float32, and only where rows are
observed. `quantised_evict` is the pass for the graph that evicts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlkv_export.ops import DOMAIN
from vlkv_export.passes.edit import MICROSOFT, add_initializer, constant, like, new_node, operand, replace

INT8, FLOAT8 = ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN
FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
Scales = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Of a layer's keys and values: `[1]` for all, or `[Hkv,1,D]`, one per channel."""


def apply(model: ir.Model, *, dtype: ir.DataType, scales: Sequence[Scales]) -> int:
    """Changes a decoder's caches; attention and Score read them with their scales.

    Applies to: GroupQueryAttention over caches that are graph inputs, and the Score nodes that read its keys.
    Requires: `group_query_attention` and `half` ran before.

    Args:
        model: the graph; changed in place.
        dtype: INT8 or FLOAT8E4M3FN.
        scales: of each layer.

    Returns:
        The number of layers changed.
    """
    graph = model.graph
    found = [node for node in graph if (node.domain, node.op_type) == (MICROSOFT, "GroupQueryAttention")]
    for node in found:
        layer = int(str(operand(node, 3).name).rpartition(".")[2])
        key, value = (
            _scale(graph, f"{kind}_scale.{layer}", scale)
            for kind, scale in zip(("key", "value"), scales[layer], strict=True)
        )
        mode = "PER_TENSOR" if scales[layer][0].size == 1 else "PER_CHANNEL"
        attributes = [*node.attributes.values()]
        attributes += [ir.AttrString(f"{kind}_quant_type", mode) for kind in ("k", "v")]
        attributes.append(ir.AttrInt64("kv_cache_bit_width", 8))
        results = [like(result) for result in node.outputs]
        for cache in (*node.inputs[3:5], *results[1:]):
            if cache is not None:
                cache.type = ir.TensorType(dtype)
        inputs = [*node.inputs, *[None] * (12 - len(node.inputs)), key, value]
        made = ir.Node(MICROSOFT, node.op_type, inputs, attributes, outputs=results, name=node.name)
        replace(graph, node, [made], dict(zip(node.outputs, results, strict=True)))
        graph.remove(node, safe=True)
        for score, _ in list(results[1].uses()):
            if score.op_type == "Score":
                _observe(graph, score, key)
    return len(found)


def _scale(graph: ir.Graph, name: str, scale: NDArray[np.float32]) -> ir.Value:
    return add_initializer(graph, ir.tensor(scale.astype(np.float32), dtype=FLOAT, name=name))


def _observe(graph: ir.Graph, score: ir.Node, scale: ir.Value) -> None:
    """Puts Score into a branch that runs only if rows are observed; else a step would widen its whole cache."""
    results = [like(result) for result in score.outputs]
    branches = {
        "then_branch": _branch(score, "observed", lambda made: _scored(score, scale, made)),
        "else_branch": _branch(score, "unobserved", lambda made: _nothing(graph, score, made)),
    }
    name, rows = score.name, operand(score, 2)
    count, there = (ir.Value(name=f"{name}/{part}") for part in ("rows", "observes"))
    nodes = [
        new_node("Shape", [rows], [count], {"start": 1, "end": 2}, name=f"{name}/Shape"),
        new_node("Greater", [count, constant(graph, "no_rows", [0], INT64)], [there], name=f"{name}/Greater"),
        new_node("If", [there], results, branches, name=f"{name}/If"),
    ]
    replace(graph, score, nodes, dict(zip(score.outputs, results, strict=True)))
    graph.remove(score, safe=True)


def _branch(score: ir.Node, kind: str, make: Callable[[list[ir.Value]], list[ir.Node]]) -> ir.Graph:
    """A subgraph that reads values of the outer graph."""
    results = [ir.Value(name=f"{value.name}.{kind}", type=ir.TensorType(FLOAT)) for value in score.outputs]
    return ir.Graph([], results, nodes=make(results), name=f"{score.name}/{kind}")


def _scored(score: ir.Node, scale: ir.Value, results: list[ir.Value]) -> list[ir.Node]:
    name, nodes = score.name, []

    def add(op_type: str, inputs: list[ir.Value], part: str, **attributes: object) -> ir.Value:
        made = ir.Value(name=f"{name}/{part}", type=ir.TensorType(FLOAT))
        nodes.append(new_node(op_type, inputs, [made], attributes, name=f"{name}/{op_type}.{part}"))
        return made

    query = add("Cast", [operand(score, 0)], "query", to=FLOAT)
    key = add("Mul", [add("Cast", [operand(score, 1)], "codes", to=FLOAT), scale], "key")
    inputs = [query, key, *score.inputs[2:]]
    attributes = score.attributes.values()
    nodes.append(ir.Node(DOMAIN, "Score", inputs, attributes, outputs=results, name=f"{name}/Score"))
    return nodes


def _nothing(graph: ir.Graph, score: ir.Node, results: list[ir.Value]) -> list[ir.Node]:
    """Zeros: `score [B,Hkv,C]` and `sparsity [B]`."""
    zero, name, nodes = constant(graph, "no_score", 0.0, FLOAT), score.name, []
    for result, axes in zip(results, (3, 1), strict=True):
        shape = ir.Value(name=f"{result.name}/shape", type=ir.TensorType(INT64))
        keys = operand(score, 1)
        nodes.append(
            new_node("Shape", [keys], [shape], {"start": 0, "end": axes}, name=f"{result.name}/Shape")
        )
        nodes.append(new_node("Expand", [zero, shape], [result], name=f"{name}/Expand.{axes}"))
    return nodes
