"""Scores mixed with the diversity of keys: against the oracle, for every stored dtype, and refused on devices."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from oracles import cache_rows
from oracles import policies as oracle
from vlkv import POLICIES, Policy
from vlkv.backend.cache import HostStore
from vlkv.errors import PolicyError
from vlkv.policies.mix import mixed
from vlkv.policies.observe import check_fit

HEADS, DIM = 3, 24
# cosines of 24 float32 terms, and their mean over the head: each is off by at most 24 * 2^-24, and the range of the
# diversities, which scales them, is that of random directions, at least a tenth
CLOSE = 24 * 2.0**-24 * 10


# two keys are equally far from their mean: rounding alone would decide which is the more diverse
@pytest.mark.parametrize("length", [1, 7, 90])
def test_equals_the_oracle(rng, length):
    keys, values = (rng.normal(size=(HEADS, length, DIM)).astype(np.float32) for _ in range(2))
    keys[0] += 3.0  # one head's keys are alike
    scores = rng.random((1, HEADS, length)).astype(np.float32)
    for end in {0, 1, length // 2, length}:
        got = mixed(scores, keys, values, end)
        for head in range(HEADS):
            want = oracle.mixed_by_head(
                *(array[head].astype(float) for array in (scores[0], keys, values)), end
            )
            np.testing.assert_allclose(got[0, head], want, rtol=CLOSE, atol=CLOSE * scores.max())


def test_keys_alike_and_values_of_zero(rng):
    """Where nothing differs, scores decide."""
    scores = rng.random((1, HEADS, 9)).astype(np.float32)
    found = mixed(scores, np.ones((HEADS, 9, DIM), np.float32), np.zeros((HEADS, 9, DIM), np.float32), 9)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_stored_rows_are_read_as_numbers(rng, dtype):
    rows = rng.normal(size=(2, 5, DIM)).astype(np.float32)
    stored = cache_rows.narrow(rows, dtype)
    got = HostStore(dtype).rows(stored)
    assert got.dtype == np.float32
    # one product of codes and scales
    np.testing.assert_allclose(got, cache_rows.widen(stored, dtype), rtol=2.0**-23)
    plain = HostStore().rows(rows)
    assert plain is rows


@pytest.mark.parametrize(
    ("name", "words"), [("mixkv", "diversity 'keys' reads keys"), ("tgv-kv", "reduce 'wei")]
)
def test_a_device_is_refused_in_one_line(name, words):
    with pytest.raises(PolicyError, match=words):
        check_fit(POLICIES[name], SimpleNamespace(operators="native"), SimpleNamespace(on_device=True))
    check_fit(POLICIES[name], SimpleNamespace(operators="native"), SimpleNamespace(on_device=False))


def test_diversity_needs_scores():
    with pytest.raises(PolicyError, match="diversity 'keys' is mixed with scores"):
        Policy("x", diversity="keys")
