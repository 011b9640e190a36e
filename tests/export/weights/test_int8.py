"""Weights in 8 bits: rounding against its definition, the pass against float64, whole engines."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from models import onnx_runs
from vlkv import Engine, Question
from vlkv.errors import EngineError
from vlkv.storage.manifest import read
from vlkv_export.checkpoint import Tensor
from vlkv_export.engine import build_engine
from vlkv_export.passes.blocked_weights import matrices, use_blocked_weights
from vlkv_export.passes.edit import MICROSOFT
from vlkv_export.targets.spec import Settings
from vlkv_export.weights.convert import stored
from vlkv_export.weights.int8 import block_of, quantize, write_int8

LAYERS, EACH = 3, 7


def dequantized(codes, scales, columns):
    numbers = (codes.astype(np.float64) - 128) * scales.astype(np.float64)[..., None]
    return numbers.reshape(len(codes), -1)[:, :columns]


@pytest.mark.parametrize(("rows", "columns", "block"), [(5, 256, 128), (3, 40, 32), (1, 1, 32)])
def test_rounding_is_within_half_a_step(rows, columns, block, rng):
    weights = (rng.normal(size=(rows, columns)) * 10.0 ** rng.integers(-8, 8, (rows, 1))).astype(np.float32)
    codes, scales = quantize(weights, block)
    blocks = -(-columns // block)
    assert codes.shape == (rows, blocks, block) and scales.shape == (rows, blocks)
    assert (codes.reshape(rows, -1)[:, columns:] == 128).all()
    # a float32 division and a rounding lie between a number and its code
    bound = np.repeat(scales, block, axis=1)[:, :columns] * (0.5 + 128 * 2.0**-22)
    assert (np.abs(dequantized(codes, scales, columns) - weights) <= bound).all()
    for row, scale in zip(weights, scales, strict=True):
        parts = [row[at : at + block] for at in range(0, columns, block)]
        np.testing.assert_allclose(scale, [np.abs(part).max() / 127 for part in parts], rtol=2**-22)


def test_ties_signs_and_zeros():
    weights = np.array([[127, -127, 0.5, 1.5, -0.5, 0] + [0] * 26, [0] * 32], np.float32)
    codes, scales = quantize(weights, 32)
    assert scales.tolist() == [[1], [0]]
    assert codes[0, 0, :6].tolist() == [255, 1, 128, 130, 128, 128]
    assert (codes[1] == 128).all()


@pytest.mark.parametrize(("rows", "columns"), [(70, 256), (33, 40)])
@pytest.mark.parametrize("batch", [1, 5])
def test_products_are_those_of_the_rounded_numbers(rows, columns, batch, rng, tmp_path):
    weights = rng.normal(size=(rows, columns)).astype(np.float32)
    (tmp_path / "w").write_bytes(weights.tobytes())
    tensors = {"w": Tensor("w", "w", "float32", (rows, columns), 0, weights.nbytes)}
    blocks = write_int8(tmp_path, tmp_path / "int8.safetensors", tensors)
    weight = ir.Value(
        name="w",
        shape=ir.Shape((rows, columns)),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.tensor(weights),
    )
    x = ir.Value(name="x", shape=ir.Shape(("B", columns)), type=ir.TensorType(ir.DataType.FLOAT))
    turn = ir.node("Transpose", [weight], {"perm": [1, 0]})
    product = ir.node("MatMul", [x, turn.outputs[0]])
    product.outputs[0].name = "y"
    product.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [x], product.outputs, nodes=[turn, product], opset_imports={"": 24, MICROSOFT: 1}, name="g"
    )
    graph.register_initializer(weight)
    model = ir.Model(graph, ir_version=10)
    assert list(matrices(model)) == ["w"]
    assert use_blocked_weights(model, blocks) == 1
    assert [node.op_type for node in model.graph] == ["MatMulNBits"] and "w" not in model.graph.initializers
    ir.save(model, tmp_path / "model.onnx")
    given = rng.normal(size=(batch, columns)).astype(np.float32)
    found = onnx_runs.run(tmp_path / "model.onnx", {"x": given})["y"]
    block = block_of(columns)
    kept = dequantized(*quantize(weights, block), columns)
    # the activations of a block are rounded too, each by at most half of its largest / 127
    padded = np.zeros((batch, -(-columns // block) * block))
    padded[:, :columns] = np.abs(given)
    step = padded.reshape(batch, -1, block).max(axis=2) / 127
    bound = np.repeat(step, block, axis=1)[:, :columns] @ np.abs(kept).T * 0.5
    error = np.abs(found - given.astype(np.float64) @ kept.T)
    assert (error <= bound * (1 + 1e-4)).all() and (error > 0).any()


def test_every_product_of_a_decoder_is_taken(graphs_of):
    graphs = graphs_of("llama")
    model = ir.load(graphs / "decoder.onnx")
    assert len(stored(matrices(model).values())) == LAYERS * EACH + 1


@pytest.mark.parametrize("name", ["llama", "llama-gqa-tied", "llama-biases"])
def test_engine_with_int8_weights_is_near_the_other(name, graphs_of, tmp_path):
    graphs = graphs_of(name)
    engines = {}
    for weights in ("float32", "int8"):
        built = build_engine(graphs, tmp_path / weights, weights=weights)
        assert built.weights == read(tmp_path / weights).weights == weights
        model = ir.load(tmp_path / weights / "decoder.onnx")
        taken = [node.op_type for node in model.graph].count("MatMulNBits")
        assert taken == (LAYERS * EACH + 1 if weights == "int8" else 0)
        engines[weights] = Engine.load(tmp_path / weights, threads=1)

    question = Question("a b c d e f g h", policy="full", raw=True)
    tokens = (
        engines["float32"].generate("a b c d e f g h", policy="full", raw=True, max_new_tokens=8).token_ids
    )
    exact, rounded = (
        np.array([step.logits for step in engines[kind].forced(question, tokens)])
        for kind in ("float32", "int8")
    )
    # each of some 20 products in a row adds noise of about 1/127/sqrt(12) of its size twice over: a few per cent
    spread = np.std(exact - exact.mean(axis=-1, keepdims=True))
    error = np.sqrt(np.mean((exact - rounded) ** 2))
    assert 0 < error < 0.1 * spread


def test_weights_that_are_not_finite(tmp_path):
    (tmp_path / "w").write_bytes(np.array([[1, np.nan]], np.float32).tobytes())
    tensors = {"text.w": Tensor("text.w", "w", "float32", (1, 2), 0, 8)}
    with pytest.raises(EngineError, match=r"text\.w has weights that are not finite"):
        write_int8(tmp_path, tmp_path / "int8", tensors)


def test_what_int8_does_not_go_with(graphs_of, tmp_path):
    with pytest.raises(EngineError, match="--weights int8 goes with --backend onnxruntime"):
        build_engine(graphs_of("llama"), tmp_path / "e", "tensorrt-rtx", settings=Settings(), weights="int8")
    with pytest.raises(EngineError, match="unknown weights 'int4'; known: float32, int8"):
        build_engine(graphs_of("llama"), tmp_path / "e", weights="int4")
    assert not (tmp_path / "e").exists()
