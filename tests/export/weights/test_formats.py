"""Weight formats: the definition of their rounding, the pass against float64, and whole engines."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from models import onnx_runs
from oracles import linear as oracle
from vlkv import Engine, Question
from vlkv.errors import EngineError
from vlkv.storage.manifest import read
from vlkv_export.checkpoint import Tensor
from vlkv_export.engine import build_engine
from vlkv_export.passes import native_linear
from vlkv_export.passes.products import Stored, matrices
from vlkv_export.weights import int4, int8
from vlkv_export.weights.codes import write_codes
from vlkv_export.weights.convert import stored
from vlkv_export.weights.registry import FORMATS

LAYERS, EACH, NODES = 3, 7, 4
"""Products of a layer, and the nodes into which they are joined: q, k and v; o; gate and up; down."""


def rows_of(rng, rows, columns):
    return (rng.normal(size=(rows, columns)) * 10.0 ** rng.integers(-3, 2, (rows, 1))).astype(np.float32)


@pytest.mark.parametrize(("format_", "bits"), [(int8, 8), (int4, 4)])
@pytest.mark.parametrize(("rows", "columns"), [(5, 256), (3, 40), (1, 1)])
def test_codes_are_no_worse_than_the_whole_range(format_, bits, rows, columns, rng):
    weights, steps = rows_of(rng, rows, columns), 2**bits - 1
    codes, scales, minimums = format_.quantize(weights)
    blocks = -(-columns // 32)
    assert codes.shape == (rows, blocks, 4 * bits) and scales.shape == minimums.shape == (rows, blocks)
    parts = in_blocks(weights)
    low, high = parts.min(axis=2, keepdims=True), parts.max(axis=2, keepdims=True)
    wide = oracle.widen(codes, scales, minimums, bits=bits).reshape(parts.shape)
    # each is within half a step of the range, plus the rounding of that many scales and of the minimum
    bound = (high - low) / steps * (0.5 + steps * 2.0**-11) + np.abs(low) * 2.0**-11 + (steps + 1) * 2.0**-24
    assert (np.square(wide - parts).sum(axis=2) <= 32 * np.square(bound[..., 0])).all()


def test_8_bits_take_the_range_or_symmetric_codes(rng):
    """Blocks of Q8_0 keep all bits, those of Q4_1 do where their scale has room; all zeros stay zeros."""
    codes = rng.integers(-126, 127, (5, 32))
    codes[:, 7] = 127
    scale = rng.uniform(0.001, 0.1, (5, 1)).astype(np.float16).astype(np.float64)
    for rows in (codes * scale, np.zeros((2, 32)), q4_1(rng)):
        wide = oracle.widen(*int8.quantize(rows.astype(np.float32)), bits=8)
        np.testing.assert_array_equal(wide, rows)


def q4_1(rng):
    """Rows of 16 levels, whose distance is 17 times a float16."""
    step = 17 * rng.uniform(0.001, 0.01, (7, 1)).astype(np.float16).astype(np.float64)
    levels = rng.integers(0, 16, (7, 32))
    levels[:, 3], levels[:, 17] = 0, 15
    return step * levels - 2.0 ** rng.integers(-6, -1, (7, 1))


def in_blocks(weights):
    """Blocks `[N, G, 32]` of rows `[N, K]`, with zeros past K."""
    rows, columns = weights.shape
    padded = np.zeros((rows, -(-columns // 32) * 32))
    padded[:, :columns] = weights
    return padded.reshape(rows, -1, 32)


def test_4_bits_keep_a_block_of_q4_1(rng):
    scale = rng.uniform(0.001, 0.1, (7, 3, 1)).astype(np.float16).astype(np.float64)
    minimum = (-rng.uniform(0.1, 1, (7, 3, 1))).astype(np.float16).astype(np.float64)
    code = rng.integers(0, 16, (7, 3, 32))
    code[..., 3], code[..., 17] = 0, 15
    weights = (code * scale + minimum).astype(np.float32).reshape(7, 96)
    wide = oracle.widen(*int4.quantize(weights), bits=4)
    np.testing.assert_array_equal(wide.astype(np.float32), weights)


def product(weight, add):
    """Returns a graph of one product, with a bias if `add` is given."""
    x = ir.Value(name="x", shape=ir.Shape(("B", weight.shape[1])), type=ir.TensorType(ir.DataType.FLOAT))
    held = [
        ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.FLOAT),
            const_value=ir.tensor(array, name=name),
        )
        for name, array in (("w", weight), ("b", add))
        if array is not None
    ]
    nodes = [ir.node("Transpose", [held[0]], {"perm": [1, 0]})]
    nodes.append(ir.node("MatMul", [x, nodes[0].outputs[0]]))
    if add is not None:
        nodes.append(ir.node("Add", [held[1], nodes[1].outputs[0]]))
    nodes[-1].outputs[0].name = "y"
    nodes[-1].outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], nodes[-1].outputs, nodes=nodes, opset_imports={"": 24}, name="g")
    for value in held:
        graph.register_initializer(value)
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize(("rows", "columns", "batch"), [(70, 256, 1), (33, 40, 5), (9, 8, 40)])
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_those_of_the_stored_numbers(name, rows, columns, batch, biased, rng, tmp_path):
    weights = rng.normal(size=(rows, columns)).astype(np.float32)
    bias = rng.normal(size=rows).astype(np.float32) if biased else None
    (tmp_path / "w").write_bytes(weights.tobytes())
    tensor = Tensor("w", "w", "float32", (rows, columns), 0, weights.nbytes)
    form = FORMATS[name]
    places, meaning = {}, weights
    if form.bits:
        parts = write_codes(tmp_path, tmp_path / "codes.safetensors", {"w": (tensor, form)})["w"]
        places = {"w": Stored(parts, form.bits)}
        meaning = oracle.widen(*form.encode(weights), bits=form.bits, depth=columns)
    elif name == "bfloat16":
        meaning = weights.astype(ml_dtypes.bfloat16)
        places = {"w": Stored((ir.tensor(meaning, name="w"),))}
    model = product(weights, bias)
    assert list(matrices(model)) == ["w"]
    assert native_linear.apply(model, stored=places) == 1
    assert [node.op_type for node in model.graph] == ["Linear"]
    assert ("w" in model.graph.initializers) == (form.bits == 0)
    ir.save(model, tmp_path / "model.onnx")
    given = rng.normal(size=(batch, columns)).astype(np.float32)
    found = onnx_runs.run(tmp_path / "model.onnx", {"x": given})["y"]
    expected, error = oracle.linear(given, meaning.astype(np.float64), bias)
    assert (np.abs(found - expected) <= error).all()


def test_a_bias_that_others_read_stays_an_addition(rng):
    model = product(rng.normal(size=(4, 32)).astype(np.float32), rng.normal(size=4).astype(np.float32))
    result = list(model.graph)[1].outputs[0]
    result.name, result.type = "raw", ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(result)
    assert native_linear.apply(model, stored={}) == 1
    assert [node.op_type for node in model.graph] == ["Linear", "Add"]
    assert [value.name for value in model.graph.outputs] == ["y", "raw"]


def test_every_product_of_a_decoder_is_taken(graphs_of):
    model = ir.load(graphs_of("llama") / "decoder.onnx")
    assert len(stored(matrices(model).values())) == LAYERS * EACH + 1
    assert native_linear.apply(model, stored={}) == LAYERS * EACH + 1
    assert [node.op_type for node in model.graph].count("Linear") == LAYERS * NODES + 1


WORST = {"bfloat16": 0.02, "int8": 0.03, "int4": 0.5}
"""Error of the logits over their spread. Some 20 products in a row each add the noise of rounded weights."""


REORDERED = 20 * 128 * 2.0**-24
"""The same for sums in another order: some 20 products in a row, of at most 128 terms each."""


@pytest.mark.parametrize("name", ["llama", "llama-gqa-tied", "llama-biases"])
@pytest.mark.parametrize("weights", WORST)
def test_engines_are_near_the_float32_one(name, weights, graphs_of, engine_of, tmp_path):
    built = build_engine(graphs_of(name), tmp_path / "e", weights=weights)
    assert built.weights == read(tmp_path / "e").weights == weights
    same = (name, weights) == ("llama-biases", "bfloat16")  # its checkpoint's weights are bfloat16
    assert (tmp_path / "e" / "model.safetensors").exists() == same
    engine = Engine.load(tmp_path / "e", threads=1)
    exact = engine_of(name)
    question = Question("a b c d e f g h", policy="full", raw=True)
    tokens = exact.generate("a b c d e f g h", policy="full", raw=True, max_new_tokens=8).token_ids
    wanted, found = (
        np.array([step.logits for step in one.forced(question, tokens)]) for one in (exact, engine)
    )
    spread = np.std(wanted - wanted.mean(axis=-1, keepdims=True))
    error = np.sqrt(np.mean((wanted - found) ** 2))
    assert error < WORST[weights] * spread
    assert (error < REORDERED * spread) == same


@pytest.mark.parametrize("name", ["llama-biases", "llama-old"])
def test_16_bit_weights_as_they_are_give_float32s_answer(name, graphs_of, engine_of, checkpoint_of, tmp_path):
    built = build_engine(graphs_of(name), tmp_path / "e")
    assert built.weights == {"llama-biases": "bfloat16", "llama-old": "float16"}[name]
    for path in checkpoint_of(name).glob("*.safetensors"):
        assert (tmp_path / "e" / path.name).read_bytes() == path.read_bytes()
    question = Question("a b c d", policy="full", raw=True)
    wide, narrow = (
        np.array([step.logits for step in one.forced(question, [5, 6, 7])])
        for one in (engine_of(name), Engine.load(tmp_path / "e", threads=1))
    )
    # the products are equal, and kernels of another format may add them in another order
    np.testing.assert_allclose(wide, narrow, rtol=0, atol=REORDERED * np.abs(wide).max())


def test_weights_that_are_not_finite(tmp_path):
    (tmp_path / "w").write_bytes(np.array([[1, np.nan]], np.float32).tobytes())
    tensors = {"text.w": (Tensor("text.w", "w", "float32", (1, 2), 0, 8), FORMATS["int4"])}
    with pytest.raises(EngineError, match=r"text\.w has weights that are not finite; int4 can't represent"):
        write_codes(tmp_path, tmp_path / "codes", tensors)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"backend": "tensorrt-rtx", "weights": "int8"},
            "--weights int8 goes with --backend onnxruntime; for tensorrt-rtx use --dtype",
        ),
        (
            {"backend": "tensorrt-rtx", "prompt_precision": "bfloat16"},
            "--prompt-precision bfloat16 goes with --backend onnxruntime",
        ),
        (
            {"operators": "functions", "weights": "int4"},
            "--weights int4 goes with --operators native; --operators functions multiplies in float32",
        ),
        (
            {"operators": "functions", "prompt_precision": "bfloat16"},
            "--prompt-precision bfloat16 goes with --operators native",
        ),
        ({"weights": "int2"}, "unknown weights 'int2'; known: float32, bfloat16, float16, int8, int4"),
        ({"prompt_precision": "int8"}, "unknown prompt precision 'int8'; known: float32, bfloat16, fixed16"),
        (
            {"prompt_precision": "fixed16"},
            "--prompt-precision fixed16 goes with weights in 8 or 4 bits, not with the checkpoint's own; leave it out",
        ),
        (
            {"weights": "bfloat16", "prompt_precision": "fixed16"},
            "--prompt-precision fixed16 goes with weights in 8 or 4 bits, not with --weights bfloat16; leave it out",
        ),
    ],
)
def test_what_does_not_go_together(graphs_of, tmp_path, arguments, text):
    with pytest.raises(EngineError, match=text):
        build_engine(graphs_of("llama"), tmp_path / "e", **arguments)
    assert not (tmp_path / "e").exists()
