"""Compares each implementation of Evict with the float64 oracle."""

import numpy as np
import pytest

from oracles import evict as oracle
from vlkv import ops

# The largest relative rounding error of one number in each dtype.
UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def caches(rng, batch=2, heads=3, slots=11, dim=5, dtype=np.float32):
    shape = (batch, heads, slots, dim)
    return rng.normal(size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)


def scores(rng, batch=2, heads=3, slots=11, levels=1000):
    """Returns multiples of 1/8 under 125.

    Their sums over heads are exact in float32, so both sides get the same sums.
    """
    return (rng.integers(0, levels, (batch, heads, slots)) / 8).astype(np.float32)


def check(
    implementation,
    key,
    value,
    score,
    length,
    keep,
    sinks=0,
    recent=0,
    capacity=None,
    per_head=True,
    merge="none",
):
    batch = key.shape[0]
    counts = [np.broadcast_to(np.asarray(n), (batch,)) for n in (length, keep, sinks, recent)]
    room = int(np.minimum(counts[1], counts[0]).max(initial=0)) if capacity is None else capacity
    with np.errstate(invalid="ignore"):
        expected = oracle.evict(key, value, score, *counts, room, per_head, merge)
        got = ops.evict(
            key,
            value,
            score,
            length,
            keep,
            sinks,
            recent,
            capacity,
            per_head,
            merge,
            implementation=implementation,
        )
    np.testing.assert_array_equal(got[2], expected[2])
    assert got[2].dtype == np.int32
    # A mean of n numbers: n - 1 additions and a division in float32, then one rounding to the dtype.
    unit = 0.0 if merge == "none" else UNIT[key.dtype.name] + key.shape[2] * UNIT["float32"]
    for one, other, old in zip(got, expected[:2], (key, value), strict=False):
        assert one.dtype == key.dtype
        assert one.shape == other.shape
        used = np.arange(key.shape[2])[None, :] < counts[0][:, None]
        largest = np.abs(old.astype(np.float64)[used.nonzero()[0], :, used.nonzero()[1]]).max(initial=0)
        np.testing.assert_allclose(one.astype(np.float64), other, rtol=0, atol=unit * largest)
    return got


@pytest.mark.parametrize("merge", ["none", "nearest_mean"])
@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize(
    ("length", "keep", "sinks", "recent", "capacity"),
    [
        (11, 4, 0, 0, None),
        (11, 4, 1, 2, 9),
        (11, 4, 2, 2, 20),
        (11, 11, 0, 0, None),
        (11, 30, 10, 10, None),
        (11, 0, 0, 0, None),
        (11, 0, 0, 0, 3),
        (0, 5, 1, 1, 2),
        (0, 5, 0, 0, None),
        (1, 1, 0, 1, None),
        (7, 1, 0, 0, None),
        ([11, 3], [4, 8], [0, 2], [1, 3], None),
        ([11, 0], [2, 0], [2, 0], [0, 0], 5),
        ([6, 10], [7, 9], 1, [0, 8], 9),
    ],
)
def test_against_the_oracle(rng, implementation, length, keep, sinks, recent, capacity, per_head, merge):
    check(implementation, *caches(rng), scores(rng), length, keep, sinks, recent, capacity, per_head, merge)


def test_random_settings(rng, implementation):
    for _ in range(40):
        batch, heads, slots, dim = rng.integers(1, [4, 4, 40, 9])
        length = rng.integers(0, slots + 1, batch)
        keep = rng.integers(0, slots + 3, batch)
        sinks = rng.integers(0, keep + 1)
        recent = rng.integers(0, keep - sinks + 1)
        capacity = int(np.minimum(keep, length).max()) + int(rng.integers(0, 5))
        key, value = caches(rng, batch, heads, slots, dim)
        score = scores(rng, batch, heads, slots, levels=int(rng.integers(1, 30)))
        per_head, merge = bool(rng.integers(2)), ["none", "nearest_mean"][rng.integers(2)]
        check(implementation, key, value, score, length, keep, sinks, recent, capacity, per_head, merge)


@pytest.mark.parametrize("slots", [1, 64, 65, 257, 1000])
def test_sizes_of_the_cache(rng, implementation, slots):
    key, value = caches(rng, 1, 2, slots)
    check(
        implementation,
        key,
        value,
        scores(rng, 1, 2, slots),
        slots,
        (slots + 1) // 3 + 1,
        merge="nearest_mean",
    )


@pytest.mark.parametrize("per_head", [True, False])
def test_ties_go_to_the_lower_position(rng, implementation, per_head):
    key, value = caches(rng)
    same = np.zeros((2, 3, 11), np.float32)
    _, _, position = check(implementation, key, value, same, 11, 5, 1, 1, per_head=per_head)
    assert (position == [0, 1, 2, 3, 10]).all()


def test_zeros_of_either_sign_tie(rng, implementation):
    key, value = caches(rng, 1, 1, 4)
    signed = np.array([[[-0.0, 0.0, -0.0, 0.0]]], np.float32)
    _, _, position = check(implementation, key, value, signed, 4, 2)
    assert position.tolist() == [[[0, 1]]]


@pytest.mark.parametrize("keep", range(1, 9))
def test_order_of_what_is_not_finite(rng, implementation, keep):
    """The order is infinity, numbers, -infinity, then NaN. Ties and NaNs are ordered by position."""
    key, value = caches(rng, 1, 1, 8)
    score = np.array([[[np.nan, -np.inf, 1, np.inf, np.nan, 2, -np.inf, np.inf]]], np.float32)
    _, _, position = check(implementation, key, value, score, 8, keep)
    assert position[0, 0].tolist() == sorted([3, 7, 5, 2, 1, 6, 0, 4][:keep])


@pytest.mark.parametrize("per_head", [True, False])
def test_sinks_and_recent_stay_before_infinite_scores(rng, implementation, per_head):
    key, value = caches(rng)
    score = scores(rng)
    score[:, :, 3:6] = np.inf
    score[:, :, [0, 10]] = np.nan
    score[:, :, 9] = -np.inf
    _, _, position = check(implementation, key, value, score, 11, 4, 1, 2, per_head=per_head)
    assert (position == [0, 3, 9, 10]).all()


def test_infinities_of_both_signs_in_two_heads_rank_as_nan(rng, implementation):
    key, value = caches(rng, 1, 2, 3)
    score = np.array([[[np.inf, 0, -1], [-np.inf, 0, -1]]], np.float32)
    _, _, position = check(implementation, key, value, score, 3, 2, per_head=False)
    assert position.tolist() == [[[1, 2], [1, 2]]]


@pytest.mark.parametrize("merge", ["none", "nearest_mean"])
def test_what_lies_beyond_the_length_is_not_read(rng, implementation, merge):
    key, value = caches(rng)
    score = scores(rng)
    for array in (key, value, score):
        array[:, :, 7:] = np.nan
    check(implementation, key, value, score, 7, 3, 1, 1, 6, merge=merge)


def test_merge_by_hand(implementation):
    """Anchors are 1 and 5. 0 and 2 go to 1, 3 is equally far from both and goes to 1, and 4 and 6 go to 5."""
    key = np.arange(7, dtype=np.float32).reshape(1, 1, 7, 1)
    score = np.array([[[0, 1, 0, 0, 0, 1, 0]]], np.float32)
    new_key, new_value, position = ops.evict(
        key, -key, score, 7, 2, merge="nearest_mean", implementation=implementation
    )
    assert position.tolist() == [[[1, 5]]]
    assert new_key.ravel().tolist() == [(0 + 1 + 2 + 3) / 4, (4 + 5 + 6) / 3]
    assert new_value.ravel().tolist() == [-1.5, -5.0]


@pytest.mark.parametrize("merge", ["none", "nearest_mean"])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_caches(rng, implementation, name, merge):
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else np.float16
    check(implementation, *caches(rng, dtype=dtype), scores(rng), [11, 8], [4, 3], 1, 1, 6, merge=merge)


def test_keeping_all_is_the_same_cache(rng, implementation):
    key, value = caches(rng)
    for merge in ("none", "nearest_mean"):
        new_key, new_value, position = ops.evict(
            key, value, scores(rng), 11, 11, merge=merge, implementation=implementation
        )
        np.testing.assert_array_equal(new_key, key)
        np.testing.assert_array_equal(new_value, value)
        assert (position == np.arange(11)).all()


@pytest.mark.parametrize(("batch", "slots"), [(0, 4), (2, 0), (0, 0)])
def test_empty_sizes(implementation, batch, slots):
    key = np.zeros((batch, 3, slots, 5), np.float32)
    new_key, new_value, position = ops.evict(
        key, key, key[..., 0], slots, 4, capacity=6, implementation=implementation
    )
    assert new_key.shape == new_value.shape == (batch, 3, 6, 5)
    assert position.shape == (batch, 3, 6)
    assert not new_key.any()
    assert (position == np.where(np.arange(6) < min(4, slots), np.arange(6), -1)).all()


def test_strided_caches(rng, implementation):
    key, value = caches(rng, slots=20)
    score = scores(rng, slots=20)
    expected = ops.evict(
        key[:, :, 3:14].copy(),
        value[:, :, 3:14].copy(),
        score[:, :, 3:14].copy(),
        11,
        4,
        implementation=implementation,
    )
    got = ops.evict(
        key[:, :, 3:14], value[:, :, 3:14], score[:, :, 3:14], 11, 4, implementation=implementation
    )
    transposed = np.ascontiguousarray(key.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)[:, :, 3:14]
    other = ops.evict(transposed, value[:, :, 3:14], score[:, :, 3:14], 11, 4, implementation=implementation)
    for a, b, c in zip(expected, got, other, strict=True):
        np.testing.assert_array_equal(b, a)
        np.testing.assert_array_equal(c, a)
