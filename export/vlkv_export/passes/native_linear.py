"""`MatMul(x, Transpose(weight)) + bias` becomes `vlkv.native.Linear`, which multiplies with weights as they are stored.

Products of the same `x` in the same format become one node: queries, keys and values; gate and up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from vlkv_export.passes.edit import (
    add_initializer,
    like,
    maker,
    new_node,
    operand,
    producer,
    sizes,
    turned_matrix,
)
from vlkv_export.passes.native_attention import NATIVE

FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class Stored:
    """What takes a matrix's place: floats; or codes of `bits`, scales and, where blocks have them, zeros."""

    parts: tuple[ir.TensorProtocol, ...]
    bits: int = 0


@dataclass(frozen=True, eq=False)
class _Product:
    """A product that can be taken: its nodes, what it multiplies, and its result."""

    node: ir.Node
    add: ir.Node | None
    weight: ir.Value
    bias: ir.Value | None

    @property
    def result(self) -> ir.Value:
        return (self.add or self.node).outputs[0]


def matrices(model: ir.Model) -> dict[str, ir.Value]:
    """The initializers that the pass can take, by name."""
    products = (_product(node) for node in model.graph)
    return {str(product.weight.name): product.weight for product in products if product is not None}


def multiply_natively(model: ir.Model, stored: Mapping[str, Stored], many: int = 0) -> int:
    """Rewrites each product with a weight `[N, K]`.

    Args:
        model: the graph; changed in place.
        stored: by the weight's name what takes its place; weights that are not named stay as they are.
        many: what products of many rows are computed in: 0 float32, 1 bfloat16 where the processor has it.

    Returns:
        How many products were rewritten.
    """
    graph = model.graph
    groups: dict[tuple[Any, ...], list[tuple[_Product, list[ir.Value]]]] = {}
    for node in list(graph):
        product = _product(node)
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


def stored_weights(model: ir.Model) -> set[str]:
    """The initializers that `Linear` reads as they are stored: all of its inputs but biases and what it multiplies."""
    names: set[str] = set()
    for node in model.graph:
        if (node.domain, node.op_type) == (NATIVE, "Linear"):
            products = node.attributes.get_int("products", 1)
            end = len(node.inputs) - products * node.attributes.get_int("bias", 0)
            names |= {str(value.name) for value in node.inputs[1:end] if value is not None}
    return names


def _product(node: ir.Node) -> _Product | None:
    """The product with a weight that is turned, or None."""
    if node.op_type != "MatMul" or node.domain != "":
        return None
    transpose = producer(node.inputs[1], "Transpose")
    weight = turned_matrix(transpose) if transpose is not None else None
    if weight is None or weight.dtype not in FLOATS:
        return None
    return _with_bias(node, weight)


def _with_bias(node: ir.Node, weight: ir.Value) -> _Product:
    """The product, with the addition of a vector that alone uses it."""
    uses = list(node.outputs[0].uses())
    if len(uses) == 1 and not node.outputs[0].is_graph_output():
        add = uses[0].node
        other = add.inputs[1 - uses[0].idx] if add.op_type == "Add" and add.domain == "" else None
        if other is not None and other.is_initializer() and list(other.shape or ()) == [sizes(weight)[0]]:
            return _Product(node, add, weight, other)
    return _Product(node, None, weight, None)


def _parts(graph: ir.Graph, weight: ir.Value, stored: Stored | None) -> list[ir.Value]:
    """The values that take a weight's place, made once."""
    if stored is None:
        return [weight]
    if stored.bits == 0:
        (tensor,) = stored.parts
        weight.const_value, weight.type = tensor, ir.TensorType(tensor.dtype)
        return [weight]
    return [add_initializer(graph, tensor) for tensor in stored.parts]


def _join(
    graph: ir.Graph, members: list[tuple[_Product, list[ir.Value]]], attributes: dict[str, int]
) -> None:
    """Puts one node in the place of the first of the products, as all of its inputs are there by then."""
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


def _replace(graph: ir.Graph, product: _Product, result: ir.Value) -> None:
    """Lets the users of a product use `result`, and takes out what nothing uses any more."""
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
