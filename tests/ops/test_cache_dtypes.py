"""Caches of every dtype: Attend inside ONNX Runtime, Score and Evict, compared with the float64 oracles."""

import math

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from oracles import attend as oracle
from oracles import cache_rows
from oracles import evict as evict_oracle
from oracles import score as score_oracle
from vlkv.ops.session_options import session_options

UNIT = 2.0**-24  # half the distance between float32 numbers at 1
HALF = 2.0**-9  # the same of bfloat16, relative
OPERATORS = {
    "float32": "AttendFloat32",
    "float16": "AttendFloat16",
    "bfloat16": "AttendBFloat16",
    "int8": "AttendInt8",
}
TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int8": ir.DataType.INT8,
}
NAMES = ("query", "key", "value", "key_cache", "value_cache", "last", "first")
RESULTS = ("result", "new_key_cache", "new_value_cache")
BFLOAT16 = 16

native = pytest.importorskip("vlkv._native")
attended = pytest.mark.parametrize("dtype", list(OPERATORS))
dtypes = pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
precisions = pytest.mark.parametrize("many", [0, 1, 2], ids=["float32", "bfloat16", "fixed16"])


def session(dtype, threads=2, many=0):
    """Opens a model of one node for any sizes."""
    types = {"last": ir.DataType.INT32, "first": ir.DataType.INT32}
    types |= {n: TYPES[dtype] for n in (*NAMES, *RESULTS) if n.endswith("_cache")}
    values, results = (
        [ir.Value(name=n, type=ir.TensorType(types.get(n, ir.DataType.FLOAT))) for n in names]
        for names in (NAMES, RESULTS)
    )
    attributes = ir.convenience.convert_attributes({"scale": 0.0, "many": many})
    node = ir.Node("vlkv.native", OPERATORS[dtype], values, attributes, outputs=results)
    for value, rank in zip((*values, *results), (3, 3, 3, 4, 4, 1, 1, 3, 4, 4), strict=True):
        value.shape = ir.Shape([f"{value.name}.{axis}" for axis in range(rank)])
    graph = ir.Graph(values, results, nodes=[node], name="attend", opset_imports={"": 24, "vlkv.native": 1})
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return ort.InferenceSession(model, session_options(threads, "native"), providers=["CPUExecutionProvider"])


def inputs(rng, dtype, batch=2, rows=1, query_heads=6, kv_heads=2, slots=50, dim=16, first=None, last=None):
    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    if last is None:
        last = rng.integers(rows - 1, slots, batch)
    last = np.array(last)
    return {
        "query": normal(batch, rows, query_heads, dim),
        "key": normal(batch, rows, kv_heads, dim),
        "value": normal(batch, rows, kv_heads, dim),
        "key_cache": cache_rows.narrow(normal(batch, kv_heads, slots, dim), dtype),
        "value_cache": cache_rows.narrow(normal(batch, kv_heads, slots, dim), dtype),
        "last": last.astype(np.int32),
        "first": np.array(last - rows + 1 if first is None else first).astype(np.int32),
    }


def run(arrays, dtype, threads=2, many=0):
    """Returns the result. The caches in `arrays` are updated in place."""
    made = session(dtype, threads, many)
    binding = made.io_binding()
    for name, array in arrays.items():
        if name.endswith("_cache"):
            value = (
                ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, BFLOAT16)
                if dtype == "bfloat16"
                else ort.OrtValue.ortvalue_from_numpy(array)
            )
            binding.bind_ortvalue_output(f"new_{name}", value)
        else:
            value = ort.OrtValue.ortvalue_from_numpy(
                array.reshape(*array.shape[:2], math.prod(array.shape[2:])) if array.ndim == 4 else array
            )
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("result", "cpu")
    made.run_with_iobinding(binding)
    return binding.get_outputs()[-1].numpy().reshape(arrays["query"].shape)


def stored(arrays, dtype):
    """Returns the caches as they must be after the call."""
    found = []
    for name in ("key", "value"):
        cache, rows = arrays[f"{name}_cache"].copy(), cache_rows.narrow(arrays[name], dtype)
        for b, (first, last) in enumerate(zip(arrays["first"], arrays["last"], strict=True)):
            cache[b, :, first : last + 1] = rows[b, : last + 1 - first].swapaxes(0, 1)
        found.append(cache)
    return found


def check(arrays, dtype, threads=2, many=0):
    expected = stored(arrays, dtype)
    keys, values = (cache_rows.widen(cache, dtype) for cache in expected)
    dim = arrays["query"].shape[3]
    factor = 1 / math.sqrt(dim)
    turn = cache_rows.hadamard(dim) if dtype == "int8" else np.eye(dim)
    query, *own = (arrays[name].astype(np.float64) @ turn for name in ("query", "key", "value"))
    lengths = arrays["first"], arrays["last"]
    mean, magnitude = oracle.attend_stored(query, keys, values, *lengths, factor, own)
    mean, magnitude = mean @ turn, magnitude @ np.abs(turn)
    got = run(arrays, dtype, threads, many)
    np.testing.assert_array_equal(arrays["key_cache"], expected[0])
    np.testing.assert_array_equal(arrays["value_cache"], expected[1])
    # As in test_attend.py; the scale is one more rounding of a logit and of a weight. A rotation of a block is a
    # rounding per stage and two for its factor, relative to the sum of magnitudes, which is at most sqrt(block) times
    # as large behind it.
    row = max(float(np.abs(array).sum(-1).max(initial=0)) for array in (query, arrays["query"]))
    block = cache_rows.block_of(dim)
    stages = math.log2(block) + 2 if dtype == "int8" else 0
    largest = factor * row * max(float(np.abs(rows).max(initial=0)) for rows in (keys, own[0]))
    error = (dim + 4 + stages * math.sqrt(block)) * UNIT * largest
    # In bfloat16 queries and keys are rounded, then weights, their sum and values.
    half = HALF if many == 1 and arrays["query"].shape[1] > 1 else 0
    error += (2 * half + half**2) * largest
    relative = 2 * math.expm1(2 * error + 4 * UNIT * largest) + (33 + stages + 2 * keys.shape[2]) * UNIT
    relative += 4 * half * (1 + HALF)
    assert (np.abs(got - mean) <= relative * magnitude + 2.0**-126).all()


@attended
@precisions
def test_sizes(rng, dtype, simd, many):
    for rows in (1, 2, 5, 30):
        check(inputs(rng, dtype, rows=rows), dtype, many=many)
        check(
            inputs(rng, dtype, batch=1, rows=rows, query_heads=1, kv_heads=1, slots=rows, dim=1),
            dtype,
            many=many,
        )
        check(inputs(rng, dtype, rows=rows, query_heads=14, slots=130, dim=64), dtype, many=many)
        check(inputs(rng, dtype, rows=rows, query_heads=5, kv_heads=1, slots=65, dim=33), dtype, many=many)
        check(
            inputs(rng, dtype, batch=3, rows=rows, query_heads=4, kv_heads=4, slots=300, dim=72),
            dtype,
            many=many,
        )


@attended
@precisions
def test_a_cache_in_several_parts_and_a_long_chunk(rng, dtype, many):
    check(
        inputs(rng, dtype, batch=3, query_heads=3, kv_heads=1, slots=3000, last=[2999, 0, 1500]),
        dtype,
        many=many,
    )
    check(
        inputs(rng, dtype, batch=1, rows=200, query_heads=3, kv_heads=1, slots=1200, last=[1199]),
        dtype,
        many=many,
    )
    check(
        inputs(rng, dtype, batch=1, rows=70, query_heads=130, kv_heads=1, slots=90, last=[80]),
        dtype,
        many=many,
    )
    # blocks of rows whose last queries fill one, two and three vectors, and tiles that end with a row's last slot
    for rows in (65, 70, 80, 96):
        check(
            inputs(rng, dtype, batch=1, rows=rows, query_heads=3, kv_heads=1, slots=200, last=[191]),
            dtype,
            many=many,
        )


@attended
@precisions
def test_rows_in_other_chunks_change_no_bit(rng, dtype, many):
    """A row's result depends on the slots that it attends to, not on the rows beside it."""
    arrays = inputs(rng, dtype, batch=1, rows=150, query_heads=6, slots=300, dim=64, first=[100], last=[249])
    whole = run({name: array.copy() for name, array in arrays.items()}, dtype, many=many)
    parts, at = [], 0
    for rows in (2, 61, 87):
        own = {n: arrays[n][:, at : at + rows].copy() for n in ("query", "key", "value")}
        own |= {n: arrays[n] for n in ("key_cache", "value_cache")}
        own |= {"first": np.array([100 + at], np.int32), "last": np.array([99 + at + rows], np.int32)}
        parts.append(run(own, dtype, many=many))
        at += rows
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@attended
@precisions
def test_padding_is_neither_stored_nor_attended_to(rng, dtype, many):
    arrays = inputs(rng, dtype, batch=3, rows=40, slots=60, first=[3, 20, 0], last=[30, 59, 0])
    for name in ("query", "key", "value"):
        arrays[name][0, 28:] = arrays[name][2, 1:] = np.nan
    wanted = stored(arrays, dtype)
    got = run(arrays, dtype, many=many)
    assert np.isfinite(got).all() and not got[0, 28:].any() and not got[2, 1:].any() and got[1].any()
    np.testing.assert_array_equal(arrays["key_cache"], wanted[0])


def special(dim):
    """Rows of numbers that round in unusual ways, [N, D]."""
    ties = (np.arange(-dim, dim, 2) * 2.0**-8 + 1).astype(np.float32)
    tiny = np.arange(dim, dtype=np.uint32).view(np.float32)
    rows = [
        np.zeros(dim),
        -np.zeros(dim),
        ties,
        -ties,
        ties + 2.0**-23,
        tiny,
        -tiny * 1e5,
        np.full(dim, np.float32(3.4e38)),
        np.where(np.arange(dim) % 3, 3.3961775e38, -3.4028235e38),
        np.where(np.arange(dim) == 1, np.nan, 1.0),
        np.where(np.arange(dim) == 2, np.inf, 1.0),
        np.where(np.arange(dim) == dim - 1, -np.inf, tiny),
        np.arange(dim) - 0.5 * dim,
        np.r_[127.0, np.arange(dim - 1) + 0.5],
        np.full(dim, 2.0**-149),
        np.r_[190 * 2.0**-149, np.zeros(dim - 1)],
    ]
    with np.errstate(over="ignore"):
        return np.array(rows, np.float32)


@attended
@pytest.mark.parametrize("dim", [3, 16, 37])
def test_every_kind_of_number_is_stored_by_the_definition(rng, dtype, simd, dim):
    rows = special(dim)
    arrays = inputs(
        rng, dtype, batch=1, rows=len(rows), query_heads=1, kv_heads=1, slots=len(rows), dim=dim, first=[0]
    )
    arrays["key"][0, :, 0], arrays["value"][0, :, 0] = rows, rows[::-1]
    wanted = stored(arrays, dtype)
    run(arrays, dtype)
    for name, cache in zip(("key_cache", "value_cache"), wanted, strict=True):
        if dtype == "bfloat16":  # a NaN keeps its payload's upper bits
            nan = np.isnan(cache_rows.widen(arrays[name], dtype))
            np.testing.assert_array_equal(nan, np.isnan(cache_rows.widen(cache, dtype)))
            arrays[name][nan] = 0x7FC0
        np.testing.assert_array_equal(arrays[name], cache)


@attended
@pytest.mark.parametrize("rows", [1, 6])
def test_threads_and_neighbours_change_no_bit(rng, dtype, rows):
    arrays = inputs(rng, dtype, batch=4, rows=rows, slots=2500, dim=64)
    alone = {name: array[2:3].copy() for name, array in arrays.items()}
    one = run({name: array.copy() for name, array in arrays.items()}, dtype, threads=1)
    np.testing.assert_array_equal(one, run(arrays, dtype, threads=3))
    np.testing.assert_array_equal(one[2:3], run(alone, dtype))


@attended
@pytest.mark.parametrize("rows", [1, 5])
def test_slots_past_the_last_are_not_read_or_written(rng, dtype, rows):
    arrays = inputs(rng, dtype, rows=rows, slots=70, last=[10, 63])
    nothing = cache_rows.narrow(np.full(16, np.nan, np.float32), dtype)
    for name in ("key_cache", "value_cache"):
        arrays[name][0, :, 11:], arrays[name][1, :, 64:] = nothing, nothing
    assert np.isfinite(run(arrays, dtype)).all()
    for rest in (arrays["key_cache"][0, :, 11:], arrays["value_cache"][1, :, 64:]):
        np.testing.assert_array_equal(rest, np.broadcast_to(nothing, rest.shape))


@attended
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("kind", ["key_cache", "value_cache"])
@precisions
def test_a_nan_reaches_its_own_kv_head_alone(rng, dtype, rows, kind, many):
    arrays = inputs(rng, dtype, rows=rows, slots=2000, last=[1999, 1999])
    row = np.ones(16, np.float32)
    row[3] = np.nan
    arrays[kind][1, 0, 70] = cache_rows.narrow(row, dtype)
    bad = np.isnan(run(arrays, dtype, many=many))
    assert bad[1, :, :3, 3].all() and not bad[0].any() and not bad[1, :, 3:].any()


def test_only_prompts_are_multiplied_in_bfloat16(rng, simd):
    for rows, dim, rounds in ((40, 64, True), (1, 64, False), (40, 33, False)):
        arrays = inputs(rng, "float32", rows=rows, slots=90, dim=dim)
        exact, fixed, half = (
            run({name: array.copy() for name, array in arrays.items()}, "float32", many=many)
            for many in (0, 2, 1)
        )
        np.testing.assert_array_equal(fixed, exact)
        if not rounds or simd != "avx512":
            np.testing.assert_array_equal(half, exact)


def test_an_unknown_precision_is_refused(rng):
    with pytest.raises(Exception, match=r"\[attend\] precision is 3, not in \[0, 2\]"):
        run(inputs(rng, "float32", rows=2), "float32", many=3)


@attended
def test_no_tokens_and_no_prompts(rng, dtype):
    arrays = inputs(rng, dtype, rows=0, last=[4, 5], first=[5, 6])
    before = arrays["key_cache"].copy()
    assert run(arrays, dtype).shape == (2, 0, 6, 16)
    np.testing.assert_array_equal(arrays["key_cache"], before)
    assert run(inputs(rng, dtype, batch=0, rows=3, last=np.zeros(0, int)), dtype).shape == (0, 3, 6, 16)


@attended
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"last": [0, 50]}, r"\[attend\] prompt 1's new token takes slot 50, not in \[0, 49\]"),
        (
            {"rows": 3, "first": [5, 5], "last": [7, 8]},
            r"\[attend\] prompt 1's new tokens take slots 5 to 8, not 1 to 3 slots from 0",
        ),
        ({"rows": 3, "first": [5, 9], "last": [7, 8]}, "prompt 1's new tokens take slots 9 to 8"),
        ({"rows": 3, "first": [-1, 0], "last": [1, 2]}, "prompt 0's new tokens take slots -1 to 1"),
        ({"query_heads": 5}, r"\[attend\] query_heads 5 is not a multiple of kv_heads 2"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(rng, dtype, change, text):
    arrays = inputs(rng, dtype, **change)
    before = arrays["key_cache"].copy()
    with pytest.raises(Exception, match=text):
        run(arrays, dtype)
    np.testing.assert_array_equal(arrays["key_cache"], before)


@dtypes
@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize(("slots", "dim"), [(11, 5), (300, 64), (1, 1)])
def test_evict(rng, dtype, merge, slots, dim):
    shape = (1, 3, slots, dim)
    key, value = (cache_rows.narrow(rng.normal(size=shape).astype(np.float32), dtype) for _ in range(2))
    score = (rng.integers(0, 1000, shape[:3]) / 8).astype(np.float32)
    keep = max(1, slots // 3)
    counts = [np.array([n], np.int64) for n in (slots, keep, min(1, keep), 0)]
    outs = [np.zeros((1, 3, keep, key.shape[3]), key.dtype) for _ in range(2)]
    position = np.zeros((1, 3, keep), np.int32)
    native.evict(key, value, score, *counts, *outs, position, True, merge, True, 2)
    wide = [cache_rows.widen(rows, dtype) for rows in (key, value)]
    *rows, kept = evict_oracle.evict(*wide, score, *counts, keep, True, "mean" if merge else "none")
    np.testing.assert_array_equal(position, kept)
    for out, source, mean in zip(outs, (key, value), rows, strict=True):
        if not merge:
            np.testing.assert_array_equal(out, np.take_along_axis(source, kept[..., None], 2))
            continue
        # the mean in float32, then one rounding: 8 or 11 bits of each number, or half a code of the row's scale
        got = cache_rows.widen(out, dtype)
        largest = np.abs(mean).max(-1, keepdims=True)
        rounding = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
        room = np.abs(mean) * rounding[dtype] + 2.0**-25 if dtype in rounding else largest / 254
        assert (np.abs(got - mean) <= room + (slots + 3) * UNIT * np.abs(wide).max()).all()


@dtypes
@pytest.mark.parametrize("rows", [1, 70])
@pytest.mark.parametrize(("slots", "dim"), [(1, 1), (131, 33), (200, 64)])
def test_score(rng, dtype, rows, slots, dim):
    query = rng.normal(size=(1, 6, rows, dim)).astype(np.float32)
    key = cache_rows.narrow(rng.normal(size=(1, 2, slots, dim)).astype(np.float32), dtype)
    position = rng.integers(-1, slots, (1, rows))
    total, (pairs, below) = np.zeros((1, 2, slots), np.float32), np.zeros((2, 1), np.int64)
    native.score(query, key, position, 0.0, 0.01, total, pairs, below, 2)
    wide, scale = cache_rows.widen(key, dtype), 1 / math.sqrt(dim)
    turned = query @ cache_rows.hadamard(dim) if dtype == "int8" else query
    expected, *_ = score_oracle.score(turned, wide, position, scale, 0.01)
    largest = scale * max(np.abs(rows_).sum(-1).max() for rows_ in (query, turned)) * np.abs(wide).max()
    block = cache_rows.block_of(dim)
    error = (dim + 3 + (math.log2(block) + 2) * math.sqrt(block)) * UNIT * largest
    relative = math.expm1(2 * error + 4 * UNIT * largest) + (16 + slots + 3 * rows) * UNIT
    np.testing.assert_allclose(total, expected, rtol=relative, atol=3 * rows * 2.0**-126)


def test_other_arrays_are_refused(rng):
    key = np.zeros((1, 1, 4, 12), np.int8)
    score, counts = np.zeros((1, 1, 4), np.float32), [np.array([n], np.int64) for n in (4, 2, 0, 0)]
    position = np.zeros((1, 1, 2), np.int32)
    with pytest.raises(ValueError, match=r"key_out has shape \(1, 1, 2, 8\), not \(1, 1, 2, 12\)"):
        native.evict(key, key, score, *counts, key[:, :, :2, :8].copy(), key[:, :, :2].copy(), position)
    query = np.zeros((1, 1, 1, 12), np.float32)
    with pytest.raises(ValueError, match=r"key has shape \(1, 1, 4, 12\), not \(1, 1, 4, 16\)"):
        native.score(query, key, np.zeros((1, 1), np.int64), 0.0, 0.0, score, *np.zeros((2, 1), np.int64), 1)
    with pytest.raises(ValueError, match="query has dtype 3, int8, which only caches on CPUs have"):
        native.score(
            np.zeros((1, 1, 1, 8), np.int8),
            key,
            np.zeros((1, 1), np.int64),
            0.0,
            0.0,
            score,
            *np.zeros((2, 1), np.int64),
            1,
        )
