"""The operators of ONNX Runtime's CUDA provider: inside ONNX Runtime, over the emulated kernels, against float64."""

from __future__ import annotations

import itertools
import math

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from oracles import attend as attend_oracle
from oracles import evict as evict_oracle
from oracles import score as score_oracle
from vlkv.ops.native import native
from vlkv_export.ops import evict_model, score_model
from vlkv_export.passes import device_operators

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
TYPES = {"float16": (ir.DataType.FLOAT16, np.float16), "bfloat16": (ir.DataType.BFLOAT16, ml_dtypes.bfloat16)}
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half the distance between two numbers at 1."""
LEAST = {"float16": 2.0**-25, "bfloat16": 2.0**-134}
"""The largest error of rounding a number near 0."""


def attend_model(dtype, scale):
    names = ("query", "key", "value", "key_cache", "value_cache")
    given = [ir.Value(name=n, type=ir.TensorType(dtype), shape=ir.Shape(list("BHSD"))) for n in names]
    for value in given:
        value.shape = ir.Shape([f"{value.name}.{axis}" for axis in range(4)])
    counts = [ir.Value(name=n, type=ir.TensorType(INT64), shape=ir.Shape(["B"])) for n in ("length", "count")]
    made = [
        ir.Value(name=n, type=ir.TensorType(dtype), shape=given[i].shape)
        for n, i in (("result", 0), ("new_key_cache", 3), ("new_value_cache", 4))
    ]
    attributes = ir.convenience.convert_attributes({"scale": scale, "plugin_namespace": ""})
    node = ir.Node("vlkv", "VlkvAttend", [*given, *counts], attributes, outputs=made)
    graph = ir.Graph([*given, *counts], made, nodes=[node], name="attend", opset_imports={"": 24, "vlkv": 1})
    return ir.Model(graph, ir_version=10)


def proto(model):
    assert device_operators.apply(model) == 1
    return ir.to_proto(model).SerializeToString()


def opened(model, library):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(proto(model), options, providers=["CPUExecutionProvider"])


def value_of(array):
    """Memory of the array as ONNX Runtime's value."""
    if array.dtype == ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), 16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def run(session, inputs, outputs):
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, value_of(array))
    for name, array in outputs.items():
        binding.bind_ortvalue_output(name, value_of(array))
    session.run_with_iobinding(binding)


def normal(rng, dtype, *shape):
    return rng.normal(size=shape).astype(TYPES[dtype][1])


def attend_arrays(rng, dtype, batch, query_heads, kv_heads, rows, slots, dim):
    length = rng.integers(0, slots - rows + 1, batch)
    count = rng.integers(0, rows + 1, batch)
    length[0], count[-1] = slots - rows, rows
    return {
        "query": normal(rng, dtype, batch, query_heads, rows, dim),
        "key": normal(rng, dtype, batch, kv_heads, rows, dim),
        "value": normal(rng, dtype, batch, kv_heads, rows, dim),
        "key_cache": normal(rng, dtype, batch, kv_heads, slots, dim),
        "value_cache": normal(rng, dtype, batch, kv_heads, slots, dim),
        "length": length,
        "count": count,
    }


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1, 8), (2, 6, 2, 1, 270, 64), (2, 2, 1, 20, 50, 40)])
def test_attend(rng, emulated, dtype, sizes):
    arrays = attend_arrays(rng, dtype, *sizes)
    slots, dim = sizes[4:]
    before = {name: array.copy() for name, array in arrays.items()}
    result = np.full(arrays["query"].shape, np.nan, TYPES[dtype][1])
    caches = {f"new_{name}": arrays[name] for name in ("key_cache", "value_cache")}
    run(opened(attend_model(TYPES[dtype][0], dim**-0.5), emulated), arrays, {"result": result} | caches)

    first, last = before["length"], before["length"] + before["count"] - 1
    for name in ("key", "value"):
        wanted = before[f"{name}_cache"].copy()
        for row, (start, count) in enumerate(zip(first, before["count"], strict=True)):
            wanted[row, :, start : start + count] = before[name][row, :, :count]
        np.testing.assert_array_equal(arrays[f"{name}_cache"].view(np.uint16), wanted.view(np.uint16))
    keys, values = (arrays[f"{name}_cache"].astype(np.float64) for name in ("key", "value"))
    query = before["query"].astype(np.float64).transpose(0, 2, 1, 3)
    found, magnitude = attend_oracle.attend_stored(query, keys, values, first, last, dim**-0.5)
    # weights and results are rounded to 16 bits; float32 logits are off by (D + 3) units of their products' magnitude
    largest = np.abs(query).sum(-1).max() * np.abs(keys).max() * dim**-0.5
    relative = 2 * UNIT[dtype] + 2 * math.expm1(2 * (dim + 3) * 2.0**-24 * largest) + 3 * slots * 2.0**-24
    error = relative * magnitude + (slots + 1) * LEAST[dtype] * np.abs(values).max()
    got = result.astype(np.float64).transpose(0, 2, 1, 3)
    assert (np.abs(got - found) <= error).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sizes", [(2, 4, 2, 9, 70, 40), (1, 2, 2, 1, 1, 8), (2, 2, 1, 0, 30, 16)])
def test_score(rng, emulated, dtype, sizes):
    batch, query_heads, kv_heads, rows, slots, dim = sizes
    arrays = {
        "query": normal(rng, dtype, batch, query_heads, rows, dim),
        "key": normal(rng, dtype, batch, kv_heads, slots, dim),
        "row_position": rng.integers(-1, slots, (batch, rows)),
    }
    score = np.full((batch, kv_heads, slots), np.nan, np.float32)
    sparsity = np.full(batch, np.nan, np.float32)
    model = score_model(dim**-0.5, 0.01, TYPES[dtype][0], query_heads, kv_heads, dim)
    run(opened(model, emulated), arrays, {"score": score, "sparsity": sparsity})
    total, pairs, below = score_oracle.score(*arrays.values(), dim**-0.5, 0.01)
    wide = [arrays[name].astype(np.float64) for name in ("query", "key")]
    largest = np.abs(wide[0]).sum(-1).max(initial=0) * np.abs(wide[1]).max(initial=0) * dim**-0.5
    error = (dim + 3) * 2.0**-23 * largest
    relative = 2 * math.expm1(2 * error) + 2.0**-23 * (rows * query_heads // kv_heads + slots / 64 + 112)
    np.testing.assert_allclose(score, total, rtol=relative, atol=2.0**-126)
    near = score_oracle.near(*arrays.values(), dim**-0.5, 0.01, 2 * error + 1e-6)
    for got, count, under, unsure in zip(sparsity, pairs, below, near, strict=True):
        assert abs(got * count - under) <= unsure + count * 2.0**-23


# In the long one several blocks select, which needs a workspace where each head selects.
@pytest.mark.parametrize(
    ("dtype", "merge", "sizes"),
    [
        *itertools.product(TYPES, [False, True], [(1, 2, 40, 16, 9), (1, 1, 1, 8, 0)]),
        ("float16", False, (1, 1, 65_600, 8, 50)),
    ],
)
def test_evict(rng, emulated, dtype, merge, sizes):
    batch, heads, slots, dim, capacity = sizes
    length = rng.integers(0, slots + 1, batch)
    keep = np.minimum(rng.integers(0, slots + 1, batch), capacity)
    sinks = np.minimum(rng.integers(0, 4, batch), keep)
    arrays = {
        "key": normal(rng, dtype, batch, heads, slots, dim),
        "value": normal(rng, dtype, batch, heads, slots, dim),
        "score": rng.integers(0, 6, (batch, heads, slots)).astype(np.float32),
        "length": length,
        "keep": keep,
        "sinks": sinks,
        "recent": np.minimum(rng.integers(0, 4, batch), keep - sinks),
        "capacity": np.array(capacity),
    }
    arrays["score"][0, 0, 0] = np.nan
    made = {f"new_{n}": normal(rng, dtype, batch, heads, capacity, dim) for n in ("key", "value")}
    made["position"] = np.full((batch, heads, capacity), 7, np.int32)
    run(opened(evict_model(True, merge, TYPES[dtype][0], heads, dim), emulated), arrays, made)
    mode = "nearest_mean" if merge else "none"
    key, value, position = evict_oracle.evict(*(arrays[n] for n in list(arrays)[:7]), capacity, True, mode)
    np.testing.assert_array_equal(made["position"], position)
    for name, wanted in (("key", key), ("value", value)):
        # the mean of up to C rows in float32, then one rounding; a copy is exact
        error = (slots * 2.0**-24 * 6 + UNIT[dtype] * np.abs(wanted) + LEAST[dtype]) if merge else 0.0
        assert (np.abs(made[f"new_{name}"].astype(np.float64) - wanted) <= error).all()


def test_shapes_are_inferred(emulated):
    """Of outputs whose shape the graph leaves open, ONNX Runtime's own inference finds it."""
    dtype = ir.DataType.FLOAT16
    like = {name: [f"{name}.{axis}" for axis in range(4)] for name in ("query", "key_cache", "value_cache")}
    wanted = [
        (score_model(0.1, 0.01, dtype, 6, 2, 16), [["B", 2, "C"], ["B"]]),
        (attend_model(dtype, 0.1), list(like.values())),
    ]
    for model, shapes in wanted:
        for value in model.graph.outputs:
            value.shape = None
        assert [value.shape for value in opened(model, emulated).get_outputs()] == shapes


def test_they_are_registered_for_cuda_alone():
    """The library that runs on CPUs has them too: ONNX Runtime knows them, and has no kernel for a CPU.

    It casts what has no kernel in float16 to float32 first, and then finds a type that the operator does not take.
    """
    for model, name in (
        (attend_model(ir.DataType.BFLOAT16, 0.1), "DeviceAttendBFloat16"),
        (score_model(0.1, 0.01, ir.DataType.FLOAT16, 6, 2, 16), "DeviceScoreFloat16"),
        (evict_model(True, True, ir.DataType.FLOAT16, 2, 16), "DeviceEvictFloat16"),
    ):
        with pytest.raises(Exception, match=f"(NOT_IMPLEMENTED|PrecisionFreeCast).*{name}"):
            opened(model, native().__file__)


def test_what_does_not_fit_is_refused(rng, emulated):
    arrays = attend_arrays(rng, "float16", 2, 4, 2, 3, 30, 16)
    session = opened(attend_model(ir.DataType.FLOAT16, 0.25), emulated)
    made = {"result": np.zeros_like(arrays["query"])}
    caches = {f"new_{name}": arrays[name] for name in ("key_cache", "value_cache")}
    with pytest.raises(Exception, match=r"\[attend\] new_key_cache does not share the memory of its input"):
        run(session, arrays, made | caches | {"new_key_cache": arrays["key_cache"].copy()})
    with pytest.raises(Exception, match=r"\[attend\] key is not \[B, Hkv, S, D\] of key_cache"):
        run(session, arrays | {"key": arrays["key"][:, :, :2].copy()}, made | caches)
    with pytest.raises(Exception, match=r"\[attend\] count is not \[B\]"):
        run(session, arrays | {"count": np.array([1])}, made | caches)


def test_float32_nodes_are_refused():
    from vlkv.errors import EngineError

    with pytest.raises(EngineError, match=r"Score .* has FLOAT inputs, not FLOAT16 or BFLOAT16"):
        device_operators.apply(score_model(0.1, 0.01, FLOAT, 6, 2, 16))
