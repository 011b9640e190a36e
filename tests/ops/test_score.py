"""Compares each implementation of Score with the float64 oracle."""

import math

import numpy as np
import pytest

from oracles import score as oracle
from vlkv import ops

UNIT = 2.0**-24  # half the distance between float32 numbers at 1


def inputs(rng, batch=2, query_heads=4, kv_heads=2, rows=5, slots=9, dim=8, dtype=np.float32):
    query = rng.normal(size=(batch, query_heads, rows, dim)).astype(dtype)
    key = rng.normal(size=(batch, kv_heads, slots, dim)).astype(dtype)
    return query, key, rng.integers(-1, slots, (batch, rows))


def largest_logit(query, key, scale):
    """Bounds any logit, and the sum of magnitudes in its dot product."""
    row = np.abs(query.astype(np.float64)).sum(-1).max(initial=0)
    return scale * row * np.abs(key.astype(np.float64)).max(initial=0)


def check(query, key, row_position, implementation, scale=None, threshold=0.01):
    factor = 1 / math.sqrt(query.shape[3]) if scale is None else scale
    total, pairs, below = oracle.score(query, key, row_position, factor, threshold)
    got, sparsity = ops.score(query, key, row_position, scale, threshold, implementation=implementation)
    assert got.dtype == sparsity.dtype == np.float32
    assert got.shape == total.shape
    # A logit: scaling and a dot product of D terms, D + 2 roundings. A weight: its logit's error and that
    # of the total, each with a rounding of logit - maximum; 16 units for exp and the division; a sum of C
    # weights, and one over the rows of the group. Weights under 2^-126 of the largest may be 0.
    largest = largest_logit(query, key, factor)
    error = (query.shape[3] + 2) * UNIT * largest
    terms = query.shape[1] // key.shape[1] * query.shape[2]
    relative = math.expm1(2 * error + 4 * UNIT * largest) + (16 + key.shape[2] + terms) * UNIT
    np.testing.assert_allclose(got, total, rtol=relative, atol=terms * 2.0**-126)
    # A logit and its row's threshold differ by two logits' errors and a few roundings of max + ln p or of
    # exp. For pairs that are nearer than that, either count is right.
    distance = 2 * error + UNIT * (largest + 4 * abs(math.log(threshold)) + 16)
    unsure = oracle.near(query, key, row_position, factor, threshold, distance)
    slack = unsure / np.maximum(pairs, 1) + 4 * UNIT
    assert (np.abs(sparsity - below / np.maximum(pairs, 1)) <= slack).all()


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 130])
def test_rows_in_whole_and_partial_tiles(rng, implementation, rows):
    check(*inputs(rng, batch=1, query_heads=2, kv_heads=1, rows=rows, slots=17), implementation)


@pytest.mark.parametrize(
    "sizes",
    [
        {"slots": 1},
        {"dim": 1},
        {"batch": 3, "query_heads": 7, "kv_heads": 7, "rows": 3, "slots": 5, "dim": 3},
        {"batch": 1, "query_heads": 9, "kv_heads": 3, "rows": 11, "slots": 131, "dim": 33},
        {"batch": 1, "query_heads": 8, "kv_heads": 1, "rows": 33, "slots": 64, "dim": 64},
    ],
)
def test_odd_sizes(rng, implementation, sizes):
    check(*inputs(rng, **sizes), implementation)


@pytest.mark.parametrize("empty", [{"batch": 0}, {"rows": 0}, {"batch": 0, "rows": 0}])
def test_empty_sizes_are_zeros(rng, implementation, empty):
    query, key, row_position = inputs(rng, **empty)
    total, sparsity = ops.score(query, key, row_position, implementation=implementation)
    assert total.shape == key.shape[:3]
    assert sparsity.shape == key.shape[:1]
    assert not total.any()
    assert not sparsity.any()


def test_no_slots_and_only_padding_rows(implementation):
    query, key = np.ones((1, 2, 3, 4), np.float32), np.ones((1, 1, 0, 4), np.float32)
    total, sparsity = ops.score(query, key, np.full((1, 3), -1), implementation=implementation)
    assert total.shape == (1, 1, 0)
    assert sparsity.tolist() == [0.0]


def test_padding_rows_count_nowhere(rng, implementation):
    query, key, row_position = inputs(rng, rows=70)
    row_position[0] = -1
    row_position[1, ::2] = -1
    check(query, key, row_position, implementation)
    total, sparsity = ops.score(query, key, row_position, implementation=implementation)
    assert not total[0].any()
    assert sparsity[0] == 0.0


def test_what_lies_beyond_a_row_is_not_read(rng, implementation):
    query, key, _ = inputs(rng, slots=9)
    row_position = np.full((2, 5), 4)
    expected = ops.score(query, key, row_position, implementation=implementation)
    key[:, :, 5:] = np.nan
    got = ops.score(query, key, row_position, implementation=implementation)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_row_that_is_not_finite_counts_nowhere(rng, implementation):
    query, key, row_position = inputs(rng, query_heads=2, kv_heads=2, rows=4)
    row_position[:] = 8
    expected, sparsity = ops.score(query[:, :, 1:], key, row_position[:, 1:], implementation=implementation)
    query[:, :, 0] = np.nan
    got, got_sparsity = ops.score(query, key, row_position, implementation=implementation)
    np.testing.assert_allclose(got, expected, rtol=8 * UNIT)
    np.testing.assert_array_equal(got_sparsity, sparsity)


def test_equal_keys_share_equally(implementation):
    query, key = np.ones((1, 2, 3, 4), np.float32), np.ones((1, 1, 8, 4), np.float32)
    total, sparsity = ops.score(query, key, np.full((1, 3), 7), implementation=implementation)
    np.testing.assert_allclose(total, 6 / 8, rtol=16 * UNIT)
    assert sparsity.tolist() == [0.0]


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, 0.0), (0.25, 0.5), (1.0, 0.75)])
def test_threshold_by_hand(implementation, threshold, expected):
    """The weights are 1 : 1/2 : 1/8 : 1/32. Under p * max lie none, two of four, or all but the largest."""
    key = -np.log(np.array([1, 2, 8, 32], np.float32)).reshape(1, 1, 4, 1)
    _, sparsity = ops.score(
        np.ones((1, 1, 1, 1), np.float32), key, np.array([[3]]), 1.0, threshold, implementation=implementation
    )
    assert sparsity.tolist() == [expected]


@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_scale_and_threshold_are_used(rng, implementation, scale):
    check(*inputs(rng), implementation, scale=scale, threshold=0.3)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_inputs(rng, implementation, name):
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else np.float16
    check(*inputs(rng, dtype=dtype), implementation)


def test_large_logits_do_not_overflow(rng, implementation):
    query, key, row_position = inputs(rng)
    total, _ = ops.score(query * 1e4, key * 1e4, row_position, implementation=implementation)
    attending = (row_position >= 0).sum(1) * 4
    np.testing.assert_allclose(total.sum((1, 2)), attending, rtol=1e-6)


def test_strided_arrays(rng, implementation):
    query, key, row_position = inputs(rng, rows=6, slots=12)
    expected = ops.score(query.copy(), key[:, :, :7].copy(), row_position % 7, implementation=implementation)
    got = ops.score(query, key[:, :, :7], row_position % 7, implementation=implementation)
    wide = np.zeros((*query.shape[:3], 16), np.float32)
    wide[..., ::2] = query
    sparse = ops.score(wide[..., ::2], key[:, :, :7], row_position % 7, implementation=implementation)
    for other in (got, sparse):
        np.testing.assert_array_equal(other[0], expected[0])
