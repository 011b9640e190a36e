"""Compares `vlkv.native::Attend` inside ONNX Runtime with the float64 oracle."""

import math

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from oracles import attend as oracle
from vlkv.ops.session_options import session_options

UNIT = 2.0**-24  # half the distance between float32 numbers at 1
NAMES = ("query", "key", "value", "key_cache", "value_cache", "last")
RESULTS = ("result", "new_key_cache", "new_value_cache")

pytest.importorskip("vlkv._native")


def session(scale=0.0, threads=2):
    """Opens a model of one node for any sizes."""
    values = [
        ir.Value(name=n, type=ir.TensorType(ir.DataType.INT32 if n == "last" else ir.DataType.FLOAT))
        for n in NAMES
    ]
    results = [ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT)) for name in RESULTS]
    attributes = ir.convenience.convert_attributes({"scale": scale})
    node = ir.Node("vlkv.native", "Attend", values, attributes, outputs=results)
    for value, rank in zip((*values, *results), (3, 3, 3, 4, 4, 1, 3, 4, 4), strict=True):
        value.shape = ir.Shape([f"{value.name}.{axis}" for axis in range(rank)])
    graph = ir.Graph(values, results, nodes=[node], name="attend", opset_imports={"": 24, "vlkv.native": 1})
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return ort.InferenceSession(model, session_options(threads, "native"), providers=["CPUExecutionProvider"])


def inputs(rng, batch=2, query_heads=6, kv_heads=2, slots=50, dim=16, last=None, spread=1.0):
    def normal(*shape):
        return (spread * rng.normal(size=shape)).astype(np.float32)

    last = rng.integers(0, slots, batch) if last is None else np.array(last)
    return {
        "query": normal(batch, query_heads, dim),
        "key": normal(batch, kv_heads, dim),
        "value": normal(batch, kv_heads, dim),
        "key_cache": normal(batch, kv_heads, slots, dim),
        "value_cache": normal(batch, kv_heads, slots, dim),
        "last": last.astype(np.int32),
    }


def run(arrays, scale=0.0, threads=2):
    """Returns the three results. The caches in `arrays` are updated in place."""
    made = session(scale, threads)
    binding = made.io_binding()
    flat = {n: a.reshape(len(a), 1, -1) if n in ("query", "key", "value") else a for n, a in arrays.items()}
    held = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in flat.items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    for name in ("key_cache", "value_cache"):
        binding.bind_ortvalue_output(f"new_{name}", held[name])
    binding.bind_output("result", "cpu")
    made.run_with_iobinding(binding)
    return binding.get_outputs()[-1].numpy().reshape(arrays["query"].shape)


def check(arrays, scale=None, threads=2):
    factor = 1 / math.sqrt(arrays["query"].shape[2]) if scale is None else scale
    expected, keys, values, magnitude = oracle.attend(*(arrays[name] for name in NAMES), factor)
    got = run(arrays, scale or 0.0, threads)
    np.testing.assert_array_equal(arrays["key_cache"], keys.astype(np.float32))
    np.testing.assert_array_equal(arrays["value_cache"], values.astype(np.float32))
    # A logit: two scalings and a dot product of D terms. A weight: that error and that of the maximum, each with the
    # rounding of logit - maximum, and 16 units for exp2; then sums of C terms above and below the fraction.
    row = np.abs(arrays["query"].astype(np.float64)).sum(-1).max(initial=0)
    largest = factor * row * np.abs(keys).max(initial=0)
    error = (arrays["query"].shape[2] + 3) * UNIT * largest
    relative = 2 * math.expm1(2 * error + 4 * UNIT * largest) + (32 + 2 * keys.shape[2]) * UNIT
    assert (np.abs(got - expected) <= relative * magnitude + 2.0**-126).all()


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"batch": 1, "query_heads": 1, "kv_heads": 1, "slots": 1, "dim": 1},
        {"query_heads": 4, "kv_heads": 4, "dim": 7},
        {"query_heads": 14, "kv_heads": 2, "slots": 130, "dim": 64},
        {"query_heads": 5, "kv_heads": 1, "slots": 65, "dim": 80},
        {"query_heads": 9, "kv_heads": 1, "slots": 64, "dim": 33},
        {"batch": 5, "query_heads": 8, "kv_heads": 4, "slots": 300, "dim": 128},
    ],
)
def test_sizes(rng, simd, sizes):
    check(inputs(rng, **sizes))


@pytest.mark.parametrize("slots", [1023, 1024, 1025, 3000])
def test_a_cache_in_several_parts(rng, slots):
    check(
        inputs(rng, batch=3, query_heads=3, kv_heads=1, slots=slots, dim=32, last=[slots - 1, 0, slots // 2])
    )


def test_an_explicit_scale_and_peaked_attention(rng):
    check(inputs(rng, slots=200, spread=3.0), scale=0.7)


def test_equal_logits_give_the_mean(rng):
    arrays = inputs(rng, batch=1, slots=40, last=[39])
    arrays["query"][:] = 0
    result = run(arrays)
    mean = arrays["value_cache"].mean(2, dtype=np.float64).repeat(3, axis=1)
    np.testing.assert_allclose(result, mean, atol=41 * UNIT * np.abs(arrays["value_cache"]).max())


def test_threads_and_neighbours_change_no_bit(rng):
    arrays = inputs(rng, batch=4, query_heads=6, kv_heads=2, slots=2500, dim=64)
    alone = {name: array[2:3].copy() for name, array in arrays.items()}
    one = run({name: array.copy() for name, array in arrays.items()}, threads=1)
    np.testing.assert_array_equal(one, run(arrays, threads=3))
    np.testing.assert_array_equal(one[2:3], run(alone))


def test_slots_past_the_last_are_not_read_or_written(rng):
    arrays = inputs(rng, batch=2, slots=70, last=[10, 63])
    for name in ("key_cache", "value_cache"):
        arrays[name][0, :, 11:] = np.nan
        arrays[name][1, :, 64:] = np.inf
    before = arrays["key_cache"].copy()
    assert np.isfinite(run(arrays)).all()
    np.testing.assert_array_equal(arrays["key_cache"][0, :, 11:], before[0, :, 11:])
    np.testing.assert_array_equal(arrays["key_cache"][1, :, 64:], before[1, :, 64:])


@pytest.mark.parametrize("slot", [0, 63, 64, 1500])
def test_a_nan_reaches_its_own_kv_head_alone(rng, slot):
    arrays = inputs(rng, batch=2, query_heads=6, kv_heads=2, slots=2000, last=[1999, 1999])
    arrays["key_cache"][1, 0, slot, 3] = np.nan
    bad = np.isnan(run(arrays))
    assert bad[1, :3].all() and not bad[0].any() and not bad[1, 3:].any()


def test_logits_of_minus_infinity_weigh_nothing(rng):
    arrays = inputs(rng, batch=1, query_heads=2, kv_heads=1, slots=2000, last=[1999])
    arrays["query"][:] = np.abs(arrays["query"])
    masked = np.r_[0:64, 100:1100]
    arrays["key_cache"][0, 0, masked] = -np.inf
    kept = np.delete(np.arange(2000), masked)
    shorter = {name: array.copy() for name, array in arrays.items()}
    for name in ("key_cache", "value_cache"):
        shorter[name] = np.ascontiguousarray(arrays[name][:, :, kept])
    shorter["last"] = np.array([len(kept) - 1], np.int32)
    expected, *_, magnitude = oracle.attend(*(shorter[name] for name in NAMES), 0.25)
    assert (np.abs(run(arrays) - expected) <= 1e-4 * magnitude).all()


def test_unbound_caches_are_copied_not_changed(rng):
    arrays = inputs(rng)
    flat = {n: a.reshape(len(a), 1, -1) if n in ("query", "key", "value") else a for n, a in arrays.items()}
    before = arrays["key_cache"].copy()
    result, keys, _ = session().run(None, flat)
    np.testing.assert_array_equal(arrays["key_cache"], before)
    expected, cache, *_ = oracle.attend(*(arrays[name] for name in NAMES), 0.25)
    np.testing.assert_array_equal(keys, cache.astype(np.float32))
    np.testing.assert_allclose(result.reshape(expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"last": [0, 50]}, r"\[attend\] prompt 1's new token takes slot 50, not in \[0, 49\]"),
        ({"last": [-1, 3]}, r"\[attend\] prompt 0's new token takes slot -1, not in \[0, 49\]"),
        ({"query_heads": 5}, r"\[attend\] query_heads 5 is not a multiple of kv_heads 2"),
    ],
)
def test_what_does_not_fit_is_refused(rng, change, text):
    arrays = inputs(rng, **change)
    before = arrays["key_cache"].copy()
    with pytest.raises(Exception, match=text):
        run(arrays)
    np.testing.assert_array_equal(arrays["key_cache"], before)


def test_arrays_that_do_not_belong_together_are_refused(rng):
    arrays = inputs(rng)
    arrays["value_cache"] = arrays["value_cache"][:, :, :-1].copy()
    with pytest.raises(Exception, match="value_cache has not key_cache's shape"):
        run(arrays)
