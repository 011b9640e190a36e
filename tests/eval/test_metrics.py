"""Compares the metrics with oracles: edit similarity, Wilson's interval, the bootstrap, hit rates."""

from __future__ import annotations

import numpy as np
import pytest

from oracles import metrics as oracle
from vlkv.eval.hits import hit_rate
from vlkv.eval.metrics import average, edit_distance, exact, proportion, similarity


def test_edit_distance_of_random_texts(rng):
    for _ in range(300):
        first, second = ("".join(rng.choice(list("abcA "), rng.integers(0, 9))) for _ in range(2))
        assert edit_distance(first, second) == oracle.edit_distance(first, second), (first, second)


@pytest.mark.parametrize(
    ("answer", "expected", "right", "near"),
    [("AB12", "AB12", True, 1.0), (" AB12\n", "AB12", True, 1.0), ("AB1", "AB12", False, 0.75), ("", "", True, 1.0),
     ("", "AB", False, 0.0), ("ab12", "AB12", False, 0.5), ("kitten", "sitting", False, 1 - 3 / 7)],
)  # fmt: skip
def test_answers_are_compared_to_the_character(answer, expected, right, near):
    assert exact(answer, expected) is right
    assert similarity(answer, expected) == pytest.approx(near)


@pytest.mark.parametrize(
    ("right", "count"), [(0, 1), (1, 1), (0, 40), (40, 40), (39, 40), (7, 20), (250, 500)]
)
def test_wilson_interval(right, count):
    mean = proportion([True] * right + [False] * (count - right))
    low, high = oracle.wilson(right, count)
    assert mean.value == right / count
    # both ends solve a quadratic whose terms are of size 1
    assert (mean.low, mean.high) == pytest.approx((low, high), abs=1e-12)


def test_no_interval_leaves_its_mean_out():
    for count in range(1, 600):
        for right in {0, 1, count // 2, count}:
            mean = proportion([True] * right + [False] * (count - right))
            assert 0.0 <= mean.low <= mean.value <= mean.high <= 1.0


def test_bootstrap_interval_is_that_of_the_normal_distribution_on_many_values(rng):
    values = rng.random(4000)
    mean = average(values.tolist())
    half = 1.96 * values.std() / 4000**0.5
    assert mean.value == pytest.approx(values.mean(), abs=1e-12)
    # 2000 resamples place a 2.5% point within 0.15 standard errors: 4 x sqrt(0.025 x 0.975 / 2000) / density 0.058
    assert mean.low == pytest.approx(mean.value - half, abs=0.25 * half)
    assert mean.high == pytest.approx(mean.value + half, abs=0.25 * half)
    assert average(values.tolist()) == mean
    assert (average([0.5] * 9).low, average([0.5] * 9).high) == (0.5, 0.5)


@pytest.mark.parametrize("budget", [0.01, 0.2, 0.5, 1.0])
def test_hit_rate(rng, budget):
    heads, tokens, layers = 2, 23, 3
    # few values, so that there are ties
    steps = [
        [rng.integers(0, 5, (heads, tokens + step)).astype(np.float32) for _ in range(layers)]
        for step in range(1, 4)
    ]
    kept = [
        np.stack([np.sort(rng.permutation(tokens)[: 3 + layer]) for _ in range(heads)]).astype(np.int32)
        for layer in range(layers)
    ]
    assert hit_rate(steps, kept, tokens, budget) == pytest.approx(
        oracle.hit_rate(steps, kept, tokens, budget)
    )


def test_hit_rate_of_all_kept_is_one(rng):
    kept = [np.tile(np.arange(11, dtype=np.int32), (2, 1))]
    steps = [[rng.random((2, 12)).astype(np.float32)]]
    assert hit_rate(steps, kept, 11, 0.3) == pytest.approx((1.0, 1.0))
