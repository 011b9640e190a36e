"""RMSNorm, SwiGLU and the residual joined with Linear: what is joined, what stays, and that results stay the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from vlkv.ops.session_options import session_options
from vlkv_export.passes import fused_linear, native_linear

pytest.importorskip("vlkv._native")
FLOAT = ir.DataType.FLOAT
HIDDEN, INNER = 24, 40


class Block:
    """A gated block: norm, gate and up, SwiGLU, down, residual; tests spoil one of its parts."""

    def __init__(self, rng):
        self.rng, self.nodes, self.held = rng, [], []
        self.x = ir.Value(name="x", type=ir.TensorType(FLOAT), shape=ir.Shape(["B", "S", HIDDEN]))

    def op(self, op_type, inputs, **attributes):
        result = ir.Value(name=f"{op_type}.{len(self.nodes)}", type=ir.TensorType(FLOAT))
        attributes = ir.convenience.convert_attributes(attributes)
        self.nodes.append(ir.Node("", op_type, inputs, attributes, outputs=[result]))
        return result

    def weight(self, *shape):
        array = (self.rng.normal(size=shape) / 4).astype(np.float32)
        name = f"w{len(self.held)}"
        value = ir.Value(name=name, type=ir.TensorType(FLOAT), shape=ir.Shape(shape))
        value.const_value = ir.tensor(array, name=name)
        self.held.append(value)
        return value

    def linear(self, x, columns, depth):
        return self.op("MatMul", [x, self.op("Transpose", [self.weight(columns, depth)], perm=[1, 0])])

    def model(self, kind):
        attributes = {"axis": 2} if kind == "norm of another axis name" else {"epsilon": 1e-5}
        x = self.op("RMSNormalization", [self.x, self.weight(HIDDEN)], **attributes)
        gate, up = self.linear(x, INNER, HIDDEN), self.linear(x, INNER, HIDDEN)
        if kind == "sigmoid":
            swish = self.op("Mul", [self.op("Sigmoid", [gate]), gate])
        else:
            swish = self.op("Swish", [gate], **({"alpha": 2.0} if kind == "another swish" else {}))
        inner = self.op("Mul", [up, swish])
        down = self.linear(inner, HIDDEN, INNER)
        other = self.weight(1, 1, HIDDEN) if kind == "a weight is added" else self.x
        results = [self.op("Add", [other, down])]
        if kind == "the norm is used twice":
            results.append(self.op("Neg", [x]))
        if kind == "the product is used twice":
            results.append(self.op("Neg", [down]))
        graph = ir.Graph(
            [self.x], results, nodes=self.nodes, initializers=self.held, name="block", opset_imports={"": 24}
        )
        return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("whole", 4),
        ("sigmoid", 5),
        ("norm of another axis name", 3),
        ("another swish", 2),
        ("a weight is added", 3),
        ("the norm is used twice", 3),
        ("the product is used twice", 3),
    ],
)
@pytest.mark.parametrize("rows", [1, 30])
def test_joined_nodes_give_the_same(rng, kind, count, rows):
    model = Block(rng).model(kind)
    x = rng.normal(size=(1, rows, HIDDEN)).astype(np.float32)
    assert native_linear.apply(model, stored={}) == 3
    before = run(model, x)
    assert fused_linear.apply(model) == count
    after = run(model, x)
    for one, other in zip(before, after, strict=True):
        # two kernels' roundings of sums of 40 products
        np.testing.assert_allclose(one, other, rtol=0, atol=2 * 44 * 2.0**-24 * 8 * np.abs(one).max())
    assert fused_linear.apply(model) == 0


def run(model, x):
    made = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(made, session_options(1, "native"), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def test_graphs_without_linear_stay(graphs_of):
    for graph in ("vision", "decoder", "compress"):
        assert fused_linear.apply(ir.load(graphs_of("llama") / f"{graph}.onnx")) == 0
