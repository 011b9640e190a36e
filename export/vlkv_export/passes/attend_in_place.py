"""Replaces cache updates and the Attention over them by the plugin's layer, which updates any cache in place."""

from __future__ import annotations

import onnx_ir as ir

from vlkv_export.ops import DOMAIN
from vlkv_export.ops.attend import VlkvAttend, takes_head_size
from vlkv_export.ops.library import compiled
from vlkv_export.passes.edit import constant, has_only, like, new_node, producer, replace

INT64 = ir.DataType.INT64
MASK = ("LessOrEqual", "Unsqueeze", "Add")
"""The nodes from the mask up to length + row: together they equal the plugin's causal mask."""


def apply(model: ir.Model) -> int:
    """Replaces each Attention and its two TensorScatter nodes by one VlkvAttend.

    Applies to: an Attention whose keys and values come from two TensorScatter nodes that write one slot per prompt
        and token; the caches are graph inputs that nothing else updates, the head size is one of `HEAD_SIZES`, and
        the mask lets row i see the slots up to length + i. If any Attention of the graph is different, nothing changes.

    Returns:
        The number of Attention nodes replaced.
    """
    graph = model.graph
    attentions = [node for node in graph if (node.domain, node.op_type) == ("", "Attention")]
    found = [(node, updates) for node in attentions if (updates := _updates(node)) is not None]
    if not found or len(found) < len(attentions):
        return 0
    count = _count(graph)
    for node, (keys, values) in found:
        caches, rows = (keys.inputs[0], values.inputs[0]), (keys.inputs[1], values.inputs[1])
        results = [like(value) for value in (node.outputs[0], keys.outputs[0], values.outputs[0])]
        attributes = {"scale": node.attributes.get_float("scale"), "plugin_namespace": ""}
        inputs = [node.inputs[0], *rows, *caches, keys.inputs[2], count]
        attend = new_node("VlkvAttend", inputs, results, attributes, domain=DOMAIN, name=node.name)
        olds = (node.outputs[0], keys.outputs[0], values.outputs[0])
        replace(graph, node, [attend], dict(zip(olds, results, strict=True)))
        graph.remove(node, safe=True)
    _add_function(model)
    return len(found)


def _updates(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The two TensorScatter nodes whose caches an Attention reads, or None if the plugin's layer can't replace it."""
    keys, values = (producer(value, "TensorScatter") for value in node.inputs[1:3])
    if keys is None or values is None or len(node.inputs) != 4 or not has_only(node, "scale"):
        return None
    cache, length = keys.inputs[0], keys.inputs[2] if len(keys.inputs) == 3 else None
    if cache is None or length is None or len(values.inputs) != 3 or values.inputs[2] is not length:
        return None
    plain = all(_is_input(n.inputs[0]) and not n.attributes for n in (keys, values))
    dim = cache.shape[3] if cache.shape is not None and len(cache.shape) == 4 else None
    fits = isinstance(dim, int) and takes_head_size(dim)
    return (keys, values) if plain and fits and _is_causal(node.inputs[3], length) else None


def _is_input(value: ir.Value | None) -> bool:
    return value is not None and value.is_graph_input()


def _is_causal(mask: ir.Value | None, length: ir.Value) -> bool:
    value = mask
    for index, op_type in enumerate(MASK):
        node = producer(value, op_type)
        if node is None:
            return False
        value = node.inputs[1 if index == 0 else 0]
    lengths = producer(value, "Unsqueeze")
    return lengths is not None and lengths.inputs[0] is length


def _count(graph: ir.Graph) -> ir.Value:
    """The number `[B]` of each prompt's tokens that are not padding, from the input `position_ids [B,S]`."""
    positions = next(value for value in graph.inputs if value.name == "position_ids")
    given, ones, count = (ir.Value(name=f"tokens.{name}") for name in ("given", "ones", "count"))
    zero, axis = constant(graph, "zero_i64", 0, INT64), constant(graph, "axis_1", [1], INT64)
    nodes = [
        new_node("GreaterOrEqual", [positions, zero], [given], name="tokens/GreaterOrEqual"),
        new_node("Cast", [given], [ones], {"to": INT64}, name="tokens/Cast"),
        new_node("ReduceSum", [ones, axis], [count], {"keepdims": 0}, name="tokens/ReduceSum"),
    ]
    graph.insert_before(next(iter(graph)), nodes)
    return count


def _add_function(model: ir.Model) -> None:
    function = compiled(VlkvAttend, ("result", "new_key_cache", "new_value_cache"))
    function.attributes.add(ir.AttrString("plugin_namespace", ""))
    model.functions[function.identifier()] = function
