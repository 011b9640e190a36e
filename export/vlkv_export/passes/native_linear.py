"""Replaces `MatMul(x, Transpose(weight)) + bias` by `vlkv.native.Linear`, which reads weights in their stored format.

Products of the same `x` in the same format become one node: queries, keys and values; gate and up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from vlkv_export.passes.edit import NATIVE, add_initializer, like, maker, new_node, operand, sizes
from vlkv_export.passes.products import Product, Stored, product_of


def apply(model: ir.Model, *, stored: Mapping[str, Stored], many: int = 0) -> int:
    """Replaces each product with a transposed weight `[N, K]`.

    Applies to: a MatMul whose second input is the transposition of a float initializer of rank 2, with the addition of
        a bias `[N]` if nothing else uses the product.
    Requires: this pass runs before `transposed_weights`.

    Args:
        model: the graph; changed in place.
        stored: replacements of weights, by name; other weights stay as they are.
        many: the precision of products, as the operator has it: 0 float32; 1 bfloat16 for many rows; 2 fixed point in
            16 bits with weights of 8 and 4 bits. Processors without such products compute in float32.

    Returns:
        The number of products replaced.
    """
    graph = model.graph
    groups: dict[tuple[Any, ...], list[tuple[Product, list[ir.Value]]]] = {}
    for node in list(graph):
        product = product_of(node)
        if product is None:
            continue
        own = stored.get(str(product.weight.name))
        parts = _parts(graph, product.weight, own)
        bits = own.bits if own is not None else 0
        block = sizes(parts[0])[2] if bits else 0
        alike = (bits, len(parts), block, parts[0].dtype, product.bias is None)
        groups.setdefault((node.inputs[0], *alike), []).append((product, parts))
    for (_, bits, *_), members in groups.items():
        _join(graph, members, {"bits": bits, "many": many})
    if groups:
        model.graph.opset_imports[NATIVE] = 1
    return sum(map(len, groups.values()))


def _parts(graph: ir.Graph, weight: ir.Value, stored: Stored | None) -> list[ir.Value]:
    """The values that replace a weight, made once."""
    if stored is None:
        return [weight]
    if stored.bits == 0:
        (tensor,) = stored.parts
        weight.const_value, weight.type = tensor, ir.TensorType(tensor.dtype)
        return [weight]
    return [add_initializer(graph, tensor) for tensor in stored.parts]


def _join(graph: ir.Graph, members: list[tuple[Product, list[ir.Value]]], attributes: dict[str, int]) -> None:
    """Replaces several products by one node, in the place of the first, where all inputs are available."""
    products = [product for product, _ in members]
    kinds = list(zip(*(values for _, values in members), strict=True))
    biases = [product.bias for product in products if product.bias is not None]
    first = products[0].node
    inputs = [first.inputs[0], *(value for kind in kinds for value in kind), *biases]
    said = {"products": len(products), "zeros": int(len(kinds) > 2), "bias": int(bool(biases))}
    results = [like(product.result) for product in products]
    joined = new_node("Linear", inputs, results, attributes | said, domain=NATIVE, name=first.name)
    graph.insert_before(first, [joined])
    for product, result in zip(products, results, strict=True):
        _replace(graph, product, result)


def _replace(graph: ir.Graph, product: Product, result: ir.Value) -> None:
    """Makes the users of a product use `result`, and removes nodes and weights without users."""
    old = product.result
    if old.is_graph_output():
        graph.outputs[list(graph.outputs).index(old)] = result
    ir.convenience.replace_all_uses_with(old, result)
    transpose = maker(operand(product.node, 1))
    for node in (product.add, product.node):
        if node is not None:
            graph.remove(node, safe=True)
    if not transpose.outputs[0].uses():
        graph.remove(transpose, safe=True)
    if not product.weight.uses():
        del graph.initializers[str(product.weight.name)]
