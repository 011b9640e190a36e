"""Compares splitting a budget and cutting a cache with the oracles, on random numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from oracles import evict as oracle
from policies.facts import small_text
from vlkv import POLICIES, Policy
from vlkv.backend.cache import Cache
from vlkv.errors import OperatorError, PolicyError
from vlkv.policies.compress import compress, split_budget
from vlkv.policies.observe import Observer, observed_rows

LAYERS, HEADS, LENGTH, DIM, ROOM = 3, 2, 41, 24, 6
FACTS = small_text(LAYERS, 4, HEADS, DIM)
VL = POLICIES["vl-cache"]
CASES = {
    "vl-cache": VL,
    "shared": replace(VL, per_head=False),
    "sinks": replace(VL, sinks=4, recent=0.0),
    "all recent": replace(VL, recent=1.0),
    "merged": Policy("elastic", rows="all", sinks=1, recent=0.05, per_head=False, merge="nearest_mean"),
}


@pytest.mark.parametrize("operators", ["native", "functions"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_kept_equals_the_oracle(engine_of, rng, case, operators):
    policy = CASES[case]
    backend = engine_of("mistral", operators).model.backend
    shape = (1, HEADS, LENGTH + 3, DIM)
    cache = Cache(
        [rng.normal(size=shape).astype(np.float32) for _ in range(LAYERS)],
        [rng.normal(size=shape).astype(np.float32) for _ in range(LAYERS)],
        np.full((LAYERS, 1), LENGTH, np.int64),
    )
    observer = Observer(FACTS, policy, LENGTH, range(LENGTH))
    for score in observer.scores:
        score[:] = rng.random(score.shape)
    counts = np.array([2, 13, LENGTH])
    sources = list(zip(cache.keys, cache.values, strict=True))
    small, positions = compress(policy, cache, observer, counts, counts + ROOM, backend)
    assert cache.bytes == 0
    for layer, count in enumerate(int(n) for n in counts):
        sinks = min(policy.sinks, count)
        recent = min(round(policy.recent * count), count - sinks)
        key, value = (array[:, :, :LENGTH] for array in sources[layer])
        want = oracle.evict(
            key,
            value,
            observer.scores[layer].astype(np.float64),
            *([n] for n in (LENGTH, count, sinks, recent)),
            count,
            policy.per_head,
            policy.merge,
        )
        np.testing.assert_array_equal(positions[layer], want[2][0])
        assert positions[layer].dtype == np.int32
        got = small.keys[layer][:, :, :count], small.values[layer][:, :, :count]
        for mine, theirs in zip(got, want[:2], strict=True):
            if policy.merge == "none":
                np.testing.assert_array_equal(mine, theirs.astype(np.float32))
            else:
                # a mean of at most LENGTH float32 numbers of at most about 5
                np.testing.assert_allclose(mine, theirs, rtol=0, atol=LENGTH * 5 * 2.0**-24)
        assert small.keys[layer].shape == small.values[layer].shape == (1, HEADS, count + ROOM, DIM)
        assert small.length[layer].tolist() == [count]


def test_budget_follows_sparsity_only_where_the_policy_says_so():
    sparsity = np.array([0.1, 0.5, 0.9])
    by_sparsity = split_budget(VL, sparsity, 1000, 0.1)
    assert by_sparsity.sum() == 300
    # densities 9 : 5 : 1
    assert by_sparsity.tolist() == [180, 100, 20]
    equal = split_budget(replace(VL, allocation="equal"), sparsity, 1000, 0.1)
    assert equal.tolist() == [100, 100, 100]
    floored = split_budget(VL, np.array([0.0, 0.0, 1.0]), 1000, 0.1)
    assert floored.tolist() == [145, 145, 10]
    assert split_budget(replace(VL, floor=0.05), np.array([0.0, 0.0, 1.0]), 1000, 0.1).tolist()[2] == 50
    paper = split_budget(replace(VL, rule="paper"), np.array([0.0, 0.0, 1.0]), 1000, 0.1)
    assert paper.tolist() == [150, 150, 10]


@pytest.mark.parametrize(
    ("rows", "length", "last_image", "want"),
    [
        ("none", 50, 3, range(0)),
        ("all", 50, 3, range(50)),
        ("post_vision", 50, 3, range(4, 50)),
        ("post_vision", 50, 48, range(49, 50)),
        ("post_vision", 50, 49, range(18, 50)),
        ("post_vision", 50, -1, range(18, 50)),
        ("post_vision", 20, -1, range(20)),
        ("last", 50, 3, range(18, 50)),
        ("last", 1, -1, range(1)),
    ],
)
def test_observed_rows(rows, length, last_image, want):
    assert observed_rows(Policy("p", rows=rows), length, last_image) == want


def test_an_observer_that_saw_nothing_has_sparsity_zero():
    observer = Observer(FACTS, VL, 5, range(5))
    assert observer.sparsity.tolist() == [0.0] * LAYERS
    assert [score.shape for score in observer.scores] == [(1, HEADS, 5)] * LAYERS


def test_budgets_and_layers_out_of_range():
    with pytest.raises(PolicyError, match="outside"):
        split_budget(VL, np.zeros(3), 10, 0.0)
    with pytest.raises(PolicyError, match=r"sparsity of layer 1 is nan"):
        split_budget(VL, np.array([0.0, np.nan]), 10, 0.5)
    with pytest.raises(OperatorError, match="negative"):
        split_budget(VL, np.zeros(3), -1, 0.5)
