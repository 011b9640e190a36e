"""Replaces cache updates and the Attention over them by ONNX Runtime's `GroupQueryAttention`.

It reads the valid slots of a cache only; the standard operators read its whole capacity and build a mask. Its lengths
are computed for all layers at once: `seqlens_k[l,b]` is the last valid slot after the call, `total[l]` the largest
length after it.
ONNX Runtime's CPU kernel supports a batch of prompts on an empty cache (padding at the right) and a batch of single
tokens; a chunk behind a filled cache has to come alone (B = 1) and without padding.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from vlkv_export.passes.edit import (
    MICROSOFT,
    constant,
    has_only,
    like,
    maker,
    new_node,
    numbers,
    operand,
    producer,
    replace,
    window_of,
)

DIM = 8
"""ONNX Runtime's kernel needs head sizes that are multiples of this; others keep the standard operators."""
INT32, INT64 = ir.DataType.INT32, ir.DataType.INT64


def apply(model: ir.Model) -> int:
    """Replaces each Attention and its two TensorScatter nodes by one GroupQueryAttention.

    Applies to: an Attention over two TensorScatter nodes that write rows of the graph input `length` of one layer;
        query, keys and values are split into heads by Reshape and Transpose, the head size is a multiple of `DIM`,
        and the mask lets a row see the slots up to its own, or the last of them within a sliding window.

    Returns:
        The number of Attention nodes replaced.
    """
    graph = model.graph
    found = [match for node in graph if (match := _match(node))]
    if not found:
        return 0
    first = found[0]["attention"]
    lengths, totals = _lengths(graph, first)
    for match in found:
        node, layer = match["attention"], match["layer"]
        index = constant(graph, f"layer_index.{layer}", layer, INT64)
        parts = [
            ir.Value(name=f"{name}.{layer}", type=ir.TensorType(INT32)) for name in ("seqlens_k", "total")
        ]
        gathers = [
            new_node("Gather", [source, index], [part], {"axis": 0}, name=f"layer.{layer}/{part.name}")
            for source, part in zip((lengths, totals), parts, strict=True)
        ]
        result, keys, values = like(match["result"]), like(match["keys"]), like(match["values"])
        fused = new_node(
            "GroupQueryAttention",
            [match["query"], match["key"], match["value"], match["key_cache"], match["value_cache"], *parts],
            [result, keys, values],
            {
                "num_heads": match["heads"],
                "kv_num_heads": match["kv_heads"],
                "scale": node.attributes.get_float("scale"),
                "do_rotary": 0,
            }
            | ({"local_window_size": match["window"]} if match["window"] else {}),
            domain=MICROSOFT,
            name=node.name,
        )
        swaps = {match["result"]: result, match["keys"]: keys, match["values"]: values}
        replace(graph, maker(match["keys"]), [*gathers, fused], swaps)
    common.RemoveUnusedNodesPass()(model)
    return len(found)


def _merged(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """Matches `Transpose(Reshape(x, [0,0,heads,D]))`; returns x and the number of heads."""
    transpose = producer(value, "Transpose")
    reshape = producer(transpose.inputs[0], "Reshape") if transpose else None
    if transpose is None or reshape is None or list(transpose.attributes.get_ints("perm")) != [0, 2, 1, 3]:
        return None
    return operand(reshape, 0), int(numbers(operand(reshape, 1))[2])


def _layer(written: ir.Value) -> int | None:
    """The layer whose row of the graph input `length [L,B]` is the write index `written`, or None."""
    gather = producer(written, "Gather")
    if gather is None:
        return None
    lengths, index = operand(gather, 0), operand(gather, 1).const_value
    if not lengths.is_graph_input() or lengths.name != "length":
        return None
    return None if index is None else int(index.numpy())


def _window(mask: ir.Value | None, written: ir.Value) -> int | None:
    """The window of a mask that is `slot <= written + row`, 0 for one without; None of any other mask."""
    bound = window_of(mask)
    causal, window = bound or (mask, 0)
    return window if _sees_up_to_own_slot(causal, written) else None


def _sees_up_to_own_slot(mask: ir.Value | None, written: ir.Value) -> bool:
    """Whether the mask is `slot <= written + row`, which the fused operator applies without a mask."""
    compare = producer(mask, "LessOrEqual")
    last = producer(compare.inputs[1], "Unsqueeze") if compare else None
    place = producer(last.inputs[0], "Add") if last else None
    start = producer(place.inputs[0], "Unsqueeze") if place else None
    if compare is None or place is None or start is None or start.inputs[0] is not written:
        return False
    return None not in (producer(compare.inputs[0], "Range"), producer(place.inputs[1], "Range"))


def _match(node: ir.Node) -> dict[str, Any] | None:
    if node.op_type != "Attention" or node.domain != "" or len(node.inputs) != 4:
        return None
    scatters = [s for index in (1, 2) if (s := producer(node.inputs[index], "TensorScatter")) is not None]
    query = _merged(node.inputs[0])
    if len(scatters) != 2 or query is None or not has_only(node, "scale"):
        return None
    written = operand(scatters[0], 2)
    layer, dim = _layer(written), operand(scatters[0], 0).shape
    if dim is None or not isinstance(dim[3], int) or dim[3] % DIM:
        return None
    if layer is None or scatters[1].inputs[2] is not written:
        return None
    window = _window(node.inputs[3], written)
    if window is None:
        return None
    key, value = (_merged(scatter.inputs[1]) for scatter in scatters)
    transposed = [user for user in node.outputs[0].consumers() if user.op_type == "Transpose"]
    if key is None or value is None or len(transposed) != 1:
        return None
    (reshape,) = transposed[0].outputs[0].consumers()
    return {
        "attention": node,
        "layer": layer,
        "window": window,
        "query": query[0],
        "heads": query[1],
        "key": key[0],
        "value": value[0],
        "kv_heads": key[1],
        "key_cache": operand(scatters[0], 0),
        "value_cache": operand(scatters[1], 0),
        "keys": scatters[0].outputs[0],
        "values": scatters[1].outputs[0],
        "result": reshape.outputs[0],
    }


def _lengths(graph: ir.Graph, before: ir.Node) -> tuple[ir.Value, ir.Value]:
    """`seqlens_k [L,B]` and `total [L]`, int32, from the inputs `length [L,B]` and `position_ids [B,S]`."""
    inputs = {value.name: value for value in graph.inputs}
    length, positions = inputs["length"], inputs["position_ids"]
    zero, one = constant(graph, "zero_i64", 0, INT64), constant(graph, "one_i64", 1, INT64)
    axis = constant(graph, "axis_1", [1], INT64)
    nodes: list[ir.Node] = []

    def make(op_type: str, operands: list[ir.Value], **attributes: object) -> ir.Value:
        result = ir.Value(name=f"lengths.{len(nodes)}")
        nodes.append(
            new_node(op_type, operands, [result], attributes, name=f"lengths/{op_type}.{len(nodes)}")
        )
        return result

    valid = make("Cast", [make("GreaterOrEqual", [positions, zero])], to=INT64)
    added = make("Max", [make("ReduceSum", [valid, axis], keepdims=0), one])
    last = make("Sub", [make("Add", [length, added]), one])
    seqlens = make("Cast", [last], to=INT32)
    tokens = make("Shape", [positions], start=1, end=2)
    longest = make("ReduceMax", [length, axis], keepdims=0)
    totals = make("Cast", [make("Add", [longest, tokens])], to=INT32)
    graph.insert_before(next(iter(graph)), nodes)
    return seqlens, totals
