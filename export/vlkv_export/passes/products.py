"""The products `MatMul(x, Transpose(weight)) + bias` of a graph, for passes that replace them. No pass itself."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from vlkv_export.passes.edit import NATIVE, producer, sizes, turned_matrix

FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class Stored:
    """The replacement of a matrix: floats; or codes of `bits`, scales and, if blocks have them, zeros."""

    parts: tuple[ir.TensorProtocol, ...]
    bits: int = 0


@dataclass(frozen=True, eq=False)
class Product:
    """A product that can be replaced: its nodes, its weight and its bias."""

    node: ir.Node
    add: ir.Node | None
    weight: ir.Value
    bias: ir.Value | None

    @property
    def result(self) -> ir.Value:
        """The value with the bias added."""
        return (self.add or self.node).outputs[0]


def product_of(node: ir.Node) -> Product | None:
    """The product with a transposed weight that `node` is, or None."""
    if node.op_type != "MatMul" or node.domain != "":
        return None
    transpose = producer(node.inputs[1], "Transpose")
    weight = turned_matrix(transpose) if transpose is not None else None
    if weight is None or weight.dtype not in FLOATS:
        return None
    return _with_bias(node, weight)


def _with_bias(node: ir.Node, weight: ir.Value) -> Product:
    """The product, with the addition of a bias if that is the only use of the product."""
    uses = list(node.outputs[0].uses())
    if len(uses) == 1 and not node.outputs[0].is_graph_output():
        add = uses[0].node
        other = add.inputs[1 - uses[0].idx] if add.op_type == "Add" and add.domain == "" else None
        if other is not None and other.is_initializer() and list(other.shape or ()) == [sizes(weight)[0]]:
            return Product(node, add, weight, other)
    return Product(node, None, weight, None)


def matrices(model: ir.Model) -> dict[str, ir.Value]:
    """The weights of all such products, by name."""
    products = (product_of(node) for node in model.graph)
    return {str(product.weight.name): product.weight for product in products if product is not None}


def stored_weights(model: ir.Model) -> set[str]:
    """The names of the initializers that `Linear` reads as stored: all of its inputs but `x` and biases."""
    names: set[str] = set()
    for node in model.graph:
        if (node.domain, node.op_type) == (NATIVE, "Linear"):
            products = node.attributes.get_int("products", 1)
            end = len(node.inputs) - products * node.attributes.get_int("bias", 0)
            names |= {str(value.name) for value in node.inputs[1:end] if value is not None}
    return names
