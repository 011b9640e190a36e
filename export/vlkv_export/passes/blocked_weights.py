"""`MatMul(x, Transpose(weight))` becomes ONNX Runtime's `MatMulNBits`: weights of few bits, products in integers.

A step of decoding reads every weight once, so that a quarter of the bytes is a quarter of the time.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from vlkv_export.passes.edit import (
    MICROSOFT,
    add_initializer,
    like,
    maker,
    new_node,
    operand,
    producer,
    replace,
    sizes,
    turned_matrix,
)

Blocks = tuple[ir.TensorProtocol, ir.TensorProtocol]
"""A weight's codes and scales."""

INTEGER_PRODUCTS = 4
"""`accuracy_level`: the activations of each block are rounded to 8 bits too."""


def matrices(model: ir.Model) -> dict[str, ir.Value]:
    """The initializers that the pass can take, by name."""
    products = (_product(node) for node in model.graph)
    return {str(weight.name): weight for weight in products if weight is not None}


def use_blocked_weights(model: ir.Model, blocks: Mapping[str, Blocks], bits: int = 8) -> int:
    """Rewrites each product with a weight `[N, K]` that is named in `blocks`.

    Args:
        model: the graph; changed in place.
        blocks: by the weight's name its codes `[N, ceil(K / block), block * bits / 8]` uint8, in which
            `2 ** (bits - 1)` is zero, and their scales `[N, ceil(K / block)]` float32.
        bits: of a code, 8 or 4; two codes of 4 bits share a byte, the first in its low half.

    Returns:
        How many products were rewritten.
    """
    graph, count = model.graph, 0
    for node in list(graph):
        weight = _product(node)
        if weight is None or str(weight.name) not in blocks:
            continue
        tensors = blocks[str(weight.name)]
        codes, scales = (add_initializer(graph, tensor) for tensor in tensors)
        rows, columns = sizes(weight).numpy()
        result = like(node.outputs[0])
        product = new_node(
            "MatMulNBits",
            [node.inputs[0], codes, scales],
            [result],
            {
                "K": columns,
                "N": rows,
                "bits": bits,
                "block_size": tensors[0].shape.numpy()[2] * 8 // bits,
                "accuracy_level": INTEGER_PRODUCTS,
            },
            domain=MICROSOFT,
            name=node.name,
        )
        replace(graph, node, [product], {node.outputs[0]: result})
        transpose = maker(operand(node, 1))
        graph.remove(node, safe=True)
        if not transpose.outputs[0].uses():
            graph.remove(transpose, safe=True)
        if not weight.uses():
            del graph.initializers[str(weight.name)]
        count += 1
    return count


def _product(node: ir.Node) -> ir.Value | None:
    """The weight that a product turns, or None."""
    if node.op_type != "MatMul" or node.domain != "":
        return None
    transpose = producer(node.inputs[1], "Transpose")
    return turned_matrix(transpose) if transpose is not None else None
