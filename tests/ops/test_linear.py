"""Compares `vlkv.native::Linear` inside ONNX Runtime with the float64 oracle."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from oracles import linear as oracle
from vlkv.ops.cores import cpu_facts
from vlkv.ops.session_options import session_options

native = pytest.importorskip("vlkv._native")
EPSILON = 1e-5
FLOAT32, FIXED16 = 0, 2  # of the attribute `many`
FORMATS = [
    "float32",
    "float16",
    "bfloat16",
    "int8",
    "int8 with minimums",
    "int4",
    "int4 with zeros",
    "int4 with minimums",
]
BITS = {"int8": 8, "int8 with minimums": 8, "int4": 4, "int4 with zeros": 4, "int4 with minimums": 4}


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
    if kind.endswith("minimums"):
        least = (-rng.uniform(0.0005, 0.001, scales.shape)).astype(np.float16)
        return [*arrays, least], meaning | {"zeros": least}
    return arrays, meaning


def session(weights, kind, biases=(), many=0, threads=2, more=()):
    """Opens a model of one node whose weights are initializers.

    more: the names of its other inputs: `residual0` and so on, then `norm` or `gated`.
    """
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
            "zeros": int(" with " in kind),
            "bias": int(bool(biases)),
            "many": many,
            "residual": int("residual0" in more),
            "norm": int("norm" in more),
            "gated": int("gated" in more),
            "epsilon": EPSILON,
        }
    )
    others = [ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT)) for name in more]
    node = ir.Node("vlkv.native", "Linear", [x, *held, *others], attributes, outputs=results)
    graph = ir.Graph(
        [x, *others], results, nodes=[node], initializers=held, name="linear", opset_imports={"": 24}
    )
    graph.opset_imports["vlkv.native"] = 1
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return ort.InferenceSession(model, session_options(threads, "native"), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("many", [FLOAT32, FIXED16])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("shape", "columns", "block"),
    [
        ((1, 1, 1), [1], 32),
        ((1, 1, 64), [33, 7], 32),
        ((3, 1, 77), [50, 1, 16], 32),
        ((16, 1, 576), [100, 0, 40], 64),
        ((1, 40, 300), [130], 128),
        ((2, 1, 1100), [21], 32),
        ((1, 20, 1100), [21], 32),
        ((2, 150, 130), [97, 20], 96),
        ((0, 1, 32), [5], 32),
    ],
)
def test_sizes(rng, simd, kind, shape, columns, block, many):
    x = rng.normal(size=shape).astype(np.float32)
    made = [stored(rng, kind, n, shape[-1], block, half_scales=block == 64) for n in columns]
    biases = [rng.normal(size=n).astype(np.float32) for n in columns] if block != 64 else []
    got = session([arrays for arrays, _ in made], kind, biases, many=many).run(None, {"x": x})
    own, zero = (oracle.fixed16(x)[1], 128 * 0.02) if many == FIXED16 and kind in BITS else (None, 0.0)
    for i, (_, meaning) in enumerate(made):
        matrix = oracle.widen(**meaning)
        expected, error = oracle.linear(x, matrix, biases[i] if biases else None, own, zero)
        assert got[i].shape == expected.shape
        assert (np.abs(got[i] - expected) <= error).all()


@pytest.mark.parametrize("many", [FLOAT32, FIXED16])
@pytest.mark.parametrize("before", ["norm", "gated", None])
@pytest.mark.parametrize("kind", ["float32", "int8 with minimums", "int4 with minimums"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 77), (1, 3, 64), (1, 37, 130), (2, 20, 32)])
def test_what_linear_does_before_and_after(rng, simd, before, kind, shape, many):
    columns = [50, 19]
    x = 4 * rng.normal(size=shape).astype(np.float32)
    feeds = {
        f"residual{i}": rng.normal(size=(*shape[:2], n)).astype(np.float32) for i, n in enumerate(columns)
    }
    rows, own = x.astype(np.float64), np.zeros(shape)
    if before == "norm":
        feeds["norm"] = rng.normal(size=shape[-1]).astype(np.float32)
        rows, own = oracle.normalized(x, feeds["norm"], np.float64(np.float32(EPSILON)))
    elif before == "gated":
        feeds["gated"] = rng.normal(size=shape).astype(np.float32)
        rows, own = oracle.gated(x, feeds["gated"])
    made = [stored(rng, kind, n, shape[-1]) for n in columns]
    biases = [rng.normal(size=n).astype(np.float32) for n in columns]
    opened = session([arrays for arrays, _ in made], kind, biases, many, more=list(feeds))
    got = opened.run(None, {"x": x} | feeds)
    fixed, zero = (oracle.fixed16(rows)[1], 255 * 0.02) if many == FIXED16 and kind in BITS else (None, 0.0)
    for i, (_, meaning) in enumerate(made):
        matrix = oracle.widen(**meaning)
        expected, error = oracle.linear(rows, matrix, biases[i], fixed, zero)
        expected += feeds[f"residual{i}"]
        error += own @ np.abs(matrix).T + 2.0**-23 * (np.abs(expected) + np.abs(feeds[f"residual{i}"]))
        assert (np.abs(got[i] - expected) <= error).all()


def test_gates_that_are_not_finite(rng, simd):
    """By x / (1 + exp(-x)): infinity stays, its negative gives NaN, large negative numbers vanish, and NaN is NaN."""
    x = np.array([np.inf, -np.inf, np.nan, -1e30, -200.0, -90.0, 1e-40, 3e38], np.float32).reshape(-1, 1, 1)
    identity = [np.ones((1, 1), np.float32)]
    for rows in (8, 24):
        feed = np.repeat(x, rows // 8, axis=0)
        got = session([identity], "float32", more=["gated"]).run(
            None, {"x": feed, "gated": np.ones_like(feed)}
        )
        expected, error = oracle.gated(feed, np.ones_like(feed))
        bad = ~np.isfinite(expected)
        np.testing.assert_array_equal(got[0][bad], expected[bad])
        assert (np.abs(got[0][~bad] - expected[~bad]) <= error[~bad]).all()


def test_norms_of_rows_that_are_not_finite_stay_in_their_row(rng, simd):
    x = rng.normal(size=(5, 1, 70)).astype(np.float32)
    x[1, 0, 3], x[2, 0, 69], x[3] = np.nan, np.inf, 1e-40
    arrays, _ = stored(rng, "float32", 9, 70)
    feeds = {"x": x, "norm": np.ones(70, np.float32)}
    got = session([arrays], "float32", more=["norm"]).run(None, feeds)[0]
    assert np.isnan(got[1:3]).all()
    assert np.isfinite(got[[0, 3, 4]]).all()


@pytest.mark.parametrize("more", [["norm"], ["residual0", "gated"]])
@pytest.mark.parametrize("kind", ["bfloat16", "int4"])
def test_neighbours_change_no_bit_of_what_is_joined(rng, kind, more):
    feeds = {"x": rng.normal(size=(16, 1, 200)).astype(np.float32)}
    shapes = {"norm": (200,), "residual0": (16, 1, 90), "gated": (16, 1, 200)}
    feeds |= {name: rng.normal(size=shapes[name]).astype(np.float32) for name in more}
    arrays, _ = stored(rng, kind, 90, 200)
    opened = session([arrays], kind, more=more)
    whole = opened.run(None, feeds)[0]
    for some in ([0], [5, 6, 7], list(range(3, 14))):
        part = {name: array if name == "norm" else array[some] for name, array in feeds.items()}
        np.testing.assert_array_equal(opened.run(None, part)[0], whole[some])


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        ("norm", (65,), r"norm is not \[K\] float of K 64"),
        ("gated", (1, 2, 64), "gated has not the input's shape"),
        ("residual0", (1, 1, 6), "residual has not the shape of result 0"),
    ],
)
def test_other_inputs_that_do_not_fit_are_refused(rng, name, shape, text):
    arrays, _ = stored(rng, "float32", 5, 64)
    made = session([arrays], "float32", more=[name])
    with pytest.raises(Exception, match=text):
        made.run(None, {"x": np.zeros((1, 1, 64), np.float32), name: np.zeros(shape, np.float32)})


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

    Without such products in the processor the result is that of float32, which is also within this bound. Few rows of
    codes are in fixed point.
    """
    x = rng.normal(size=(1, 60, 640)).astype(np.float32)
    arrays, meaning = stored(rng, kind, 70, 640, 128)
    got = session([arrays], kind, many=1).run(None, {"x": x})[0]
    matrix = oracle.widen(**meaning)
    expected, error = oracle.linear(x, matrix)
    assert (np.abs(got - expected) <= error + 1.01 * 2.0**-8 * (np.abs(x) @ np.abs(matrix).T)).all()
    few = session([arrays], kind, many=1).run(None, {"x": x[:, :3]})[0]
    fixed, zero = (oracle.fixed16(x[:, :3])[1], 128 * 0.02) if kind in BITS else (None, 0.0)
    expected, error = oracle.linear(x[:, :3], matrix, None, fixed, zero)
    assert (np.abs(few - expected) <= error).all()


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("kind", sorted(BITS))
def test_fixed_point_is_the_oracles(rng, kind, rows):
    """The result is nearer to that of the rows in fixed point than to that of the rows as given.

    It is not equal: a number next to the middle of two steps may be rounded to the other one.
    """
    flags = cpu_facts().get("flags", "").split()
    if native.simd() != "avx512" or "avx512_vnni" not in flags:
        pytest.skip("this processor has no such products")
    x = (rng.normal(size=(rows, 1, 300)) * 10.0 ** rng.integers(-3, 4, (rows, 1, 1))).astype(np.float32)
    arrays, meaning = stored(rng, kind, 60, 300, 64)
    got = session([arrays], kind, many=FIXED16).run(None, {"x": x})[0]
    matrix = oracle.widen(**meaning)
    from_fixed = np.abs(got - oracle.fixed16(x)[0] @ matrix.T).sum(axis=-1)
    assert (from_fixed < np.abs(got - x.astype(np.float64) @ matrix.T).sum(axis=-1)).all()


def test_an_unknown_precision_is_refused(rng):
    arrays, _ = stored(rng, "int8", 5, 64)
    with pytest.raises(Exception, match=r"many is 3, not in \[0, 2\]"):
        session([arrays], "int8", many=3)


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
