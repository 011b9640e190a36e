"""Compares `vlkv.native::Linear` inside ONNX Runtime with the float64 oracle."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from oracles import linear as oracle
from vlkv.ops.session_options import session_options

native = pytest.importorskip("vlkv._native")
FORMATS = ["float32", "float16", "bfloat16", "int8", "int4", "int4 with zeros", "int4 with minimums"]
BITS = {"int8": 8, "int4": 4, "int4 with zeros": 4, "int4 with minimums": 4}


def stored(rng, kind, columns, depth, block=32, half_scales=False):
    """Returns a random matrix in a format: its arrays in the operator's order, and as the oracle takes them."""
    if kind not in BITS:
        weight = rng.normal(size=(columns, depth)) / 8
        if kind == "bfloat16":
            narrow = weight.astype(ml_dtypes.bfloat16)
            return [narrow], {"weight": narrow.view(np.uint16)}
        narrow = weight.astype(kind)
        return [narrow], {"weight": narrow}
    blocks = -(-depth // block)
    codes = rng.integers(0, 256, (columns, blocks, block * BITS[kind] // 8), dtype=np.uint8)
    scales = rng.uniform(0.001, 0.02, (columns, blocks)).astype(np.float16 if half_scales else np.float32)
    arrays, meaning = (
        [codes, scales],
        {"weight": codes, "scales": scales, "bits": BITS[kind], "depth": depth},
    )
    if kind == "int4 with zeros":
        zeros = rng.integers(0, 17, scales.shape, dtype=np.uint8)
        return [*arrays, zeros], meaning | {"zeros": zeros}
    if kind == "int4 with minimums":
        least = (-rng.uniform(0.0005, 0.001, scales.shape)).astype(np.float16)
        return [*arrays, least], meaning | {"zeros": least}
    return arrays, meaning


def session(weights, kind, biases=(), many=0, threads=2):
    """Opens a model of one node whose weights are initializers."""
    kinds = [list(group) for group in zip(*weights, strict=True)] + ([list(biases)] if biases else [])
    flat = [array for group in kinds for array in group]
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B", "S", "K"]))
    held = []
    for i, array in enumerate(flat):
        tensor = ir.tensor(array, name=f"w{i}")
        shape = ir.Shape(array.shape)
        held.append(ir.Value(name=f"w{i}", type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor))
    results = [
        ir.Value(name=f"y{i}", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B", "S", f"N{i}"]))
        for i in range(len(weights))
    ]
    attributes = ir.convenience.convert_attributes(
        {
            "products": len(weights),
            "bits": BITS.get(kind, 0),
            "zeros": int(kind.startswith("int4 with")),
            "bias": int(bool(biases)),
            "many": many,
        }
    )
    node = ir.Node("vlkv.native", "Linear", [x, *held], attributes, outputs=results)
    graph = ir.Graph([x], results, nodes=[node], initializers=held, name="linear", opset_imports={"": 24})
    graph.opset_imports["vlkv.native"] = 1
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return ort.InferenceSession(model, session_options(threads, "native"), providers=["CPUExecutionProvider"])


@pytest.fixture(params=["portable", "avx2", "avx512"])
def simd(request):
    if not native.simd_available(request.param):
        pytest.skip(f"no {request.param} here")
    before = native.simd()
    native.set_simd(request.param)
    yield request.param
    native.set_simd(before)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("shape", "columns", "block"),
    [
        ((1, 1, 1), [1], 32),
        ((1, 1, 64), [33, 7], 32),
        ((3, 1, 77), [50, 1, 16], 32),
        ((16, 1, 576), [100, 0, 40], 64),
        ((1, 40, 300), [130], 128),
        ((2, 150, 130), [97, 20], 96),
        ((0, 1, 32), [5], 32),
    ],
)
def test_sizes(rng, simd, kind, shape, columns, block):
    x = rng.normal(size=shape).astype(np.float32)
    made = [stored(rng, kind, n, shape[-1], block, half_scales=block == 64) for n in columns]
    biases = [rng.normal(size=n).astype(np.float32) for n in columns] if block != 64 else []
    got = session([arrays for arrays, _ in made], kind, biases).run(None, {"x": x})
    for i, (_, meaning) in enumerate(made):
        expected, error = oracle.linear(x, oracle.widen(**meaning), biases[i] if biases else None)
        assert got[i].shape == expected.shape
        assert (np.abs(got[i] - expected) <= error).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_neighbours_and_threads_change_no_bit(rng, kind):
    x = rng.normal(size=(16, 1, 200)).astype(np.float32)
    arrays, _ = stored(rng, kind, 300, 200)
    whole = session([arrays], kind, threads=2).run(None, {"x": x})[0]
    single = session([arrays], kind, threads=1)
    for some in ([0], [5, 6, 7], list(range(3, 14))):
        np.testing.assert_array_equal(single.run(None, {"x": x[some]})[0], whole[some])


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4 with zeros"])
def test_bfloat16_products_round_the_inputs_alone(rng, kind):
    """Weights of these formats are exact in bfloat16 except for their scale, so rounded inputs give the bound.

    Without such products in the processor the result is that of float32, which is also within this bound.
    """
    x = rng.normal(size=(1, 60, 640)).astype(np.float32)
    arrays, meaning = stored(rng, kind, 70, 640, 128)
    got = session([arrays], kind, many=1).run(None, {"x": x})[0]
    matrix = oracle.widen(**meaning)
    expected, error = oracle.linear(x, matrix)
    assert (np.abs(got - expected) <= error + 1.01 * 2.0**-8 * (np.abs(x) @ np.abs(matrix).T)).all()
    few = session([arrays], kind, many=1).run(None, {"x": x[:, :3]})[0]
    assert (np.abs(few - expected[:, :3]) <= error[:, :3]).all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda arrays: [arrays[0], arrays[1][:, :-1].copy()], r"\[linear\] scales 0 are not \[N, G\]"),
        (
            lambda arrays: [arrays[0][:, :-1].copy(), arrays[1]],
            r"weight 0 has 3 blocks of 32, not those of K 128",
        ),
        (lambda arrays: [arrays[0].astype(np.int32), arrays[1]], "weights of 8 bits are not uint8"),
        (lambda arrays: [arrays[0], arrays[1].astype(np.float64)], "scales 0 are not float or float16"),
    ],
)
def test_what_does_not_fit_is_refused(rng, change, text):
    arrays, _ = stored(rng, "int8", 5, 128)
    made = session([change(arrays)], "int8")
    with pytest.raises(Exception, match=text):
        made.run(None, {"x": np.zeros((1, 1, 128), np.float32)})
