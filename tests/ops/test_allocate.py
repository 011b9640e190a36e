"""Allocation: worked examples, comparison with oracles, and its promises as properties."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from oracles import allocate as oracle
from vlkv.errors import OperatorError, PolicyError
from vlkv.ops import allocate

SPARSITY = st.lists(
    st.floats(0, 1) | st.floats(0.9, 1) | st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40
)
LENGTH = st.integers(1, 5000)
BUDGET = st.floats(0, 1, exclude_min=True)
FLOOR = st.sampled_from([0.0, 0.01, 0.1]) | st.floats(0, 1)
some = settings(deadline=None, max_examples=200)


def kept(*arguments, **named):
    counts = allocate(*arguments, **named)
    assert counts.dtype == np.int64
    return counts.tolist()


def test_paper_by_hand():
    """Densities 0.1 and 0.3 give shares 0.25 and 0.75 of 2 layers * 0.2, which are 0.1 and 0.3 of 100 tokens."""
    assert kept([0.9, 0.7], 100, 0.2, rule="paper") == [10, 30]
    assert kept([0.9, 0.7], 100, 0.2) == [10, 30]


def test_clipping_breaks_the_papers_total_and_not_the_exact_one():
    """Shares 1/1.03 * 4 * 0.5 = 1.94, clipped to 1, and 0.01/1.03 * 2 = 0.019: 106 tokens of 200."""
    sparsity = [0.0, 0.99, 0.99, 0.99]
    assert kept(sparsity, 100, 0.5, rule="paper") == [100, 2, 2, 2]
    assert kept(sparsity, 100, 0.5) == [100, 34, 33, 33]


def test_the_floor_is_paid_by_the_others():
    """Shares 0, 0.2, 0.2 of 1000 with a floor of 0.01: 133 tokens of 400 become 10 + 195 + 195."""
    assert kept([1.0, 0.5, 0.5], 1000, 0.4 / 3) == [10, 195, 195]
    assert kept([1.0, 0.5, 0.5], 1000, 0.4 / 3, rule="paper") == [10, 200, 200]


def test_ceiling_by_hand():
    assert kept([0.0, 0.5], 100, 0.3) == [40, 20]
    assert kept([0.0, 0.5], 100, 0.3, ceiling=35) == [35, 25]
    assert kept([0.0, 0.5], 100, 0.3, ceiling=[10, 20]) == [10, 20]
    assert kept([0.0, 0.5], 100, 0.3, rule="paper", ceiling=[35, 90]) == [35, 20]
    assert kept([0.0, 0.5], 100, 0.3, floor=0.5, ceiling=[10, 90]) == [10, 50]


def test_a_floor_above_the_budget_sinks_for_all():
    assert kept([0.0, 0.5, 0.9], 1000, 0.005) == [5, 5, 5]
    assert kept([0.0, 0.5, 0.9], 1000, 0.001) == [1, 1, 1]
    assert kept([0.0, 0.5, 0.9], 100, 0.001) == [1, 1, 1]


def test_wholly_sparse_layers_rise_only_when_the_others_are_full():
    assert kept([1.0, 0.0, 1.0], 100, 0.5, floor=0.0) == [25, 100, 25]


def test_remainders_go_to_the_largest_then_the_lower_layer():
    assert kept([0.5] * 4, 10, 0.25) == [3, 3, 2, 2]
    assert kept([0.5, 0.4, 0.5], 7, 1 / 3) == [2, 3, 2]


def test_edges():
    assert kept([], 100, 0.5) == []
    assert kept([0.2, 0.7], 0, 0.5) == [0, 0]
    assert kept([0.2, 0.7], 0, 0.5, rule="paper") == [0, 0]
    assert kept([0.2, 0.7], 1, 0.1) == [1, 1]
    for rule in ("exact", "paper"):
        assert kept([1.0, 1.0], 100, 0.3, rule=rule) == [30, 30]
        assert kept([0.3, 0.3], 100, 1.0, rule=rule) == [100, 100]


@some
@given(SPARSITY, LENGTH, BUDGET, FLOOR)
def test_exact_keeps_its_promises(sparsity, length, budget, floor):
    counts = kept(sparsity, length, budget, floor=floor)
    layers = len(sparsity)
    total = round(budget * layers * length)
    assert sum(counts) == max(total, layers)
    assert min(counts) >= 1
    assert max(counts) <= length
    lowest = int(np.floor(floor * length + 0.5))
    assert min(counts) >= min(lowest, max(total, layers) // layers)
    assert kept(sparsity, length, budget, floor=floor) == counts


@some
@given(SPARSITY, LENGTH, BUDGET, FLOOR, st.data())
def test_exact_under_ceilings(sparsity, length, budget, floor, data):
    layers = len(sparsity)
    sizes = st.integers(1, 2 * length)
    ceiling = data.draw(sizes | st.lists(sizes, min_size=layers, max_size=layers))
    upper = np.minimum(np.broadcast_to(ceiling, (layers,)), length)
    counts = allocate(sparsity, length, budget, floor=floor, ceiling=ceiling)
    assert (counts >= 1).all()
    assert (counts <= upper).all()
    assert counts.sum() == min(max(round(budget * layers * length), layers), upper.sum())
    assert (allocate(sparsity, length, budget, "paper", floor, ceiling) <= upper).all()


@some
@given(SPARSITY, LENGTH, BUDGET, FLOOR, st.sampled_from(["exact", "paper"]))
def test_denser_layers_keep_no_less(sparsity, length, budget, floor, rule):
    counts = allocate(sparsity, length, budget, rule, floor)
    density = 1.0 - np.array(sparsity)
    denser = density[:, None] > density[None, :]
    assert (~denser | (counts[:, None] >= counts[None, :])).all()


@some
@given(SPARSITY, LENGTH, BUDGET, st.floats(0, 0.2))
def test_exact_is_within_a_token_of_the_real_solution(sparsity, length, budget, floor):
    layers = len(sparsity)
    dense = [1.0 - g for g in sparsity]
    total = max(round(budget * layers * length), layers)
    lowest = max(1, int(np.floor(floor * length + 0.5)))
    assume(min(dense) > 0 and lowest * layers <= total)
    real = oracle.filled(dense, [lowest] * layers, [length] * layers, total)
    assert np.abs(allocate(sparsity, length, budget, floor=floor) - real).max() <= 1 + 1e-6


@some
@given(SPARSITY, LENGTH, BUDGET, FLOOR)
def test_paper_is_the_formula(sparsity, length, budget, floor):
    """Equal to the token. Float64 and fractions may differ only if a share is within rounding of a half."""
    counts = allocate(sparsity, length, budget, "paper", floor)
    assert np.abs(counts - oracle.paper(sparsity, length, budget, floor)).max() <= 1
    nudged = [
        oracle.paper(sparsity, length, min(1.0, budget * factor), floor) for factor in (1 - 1e-9, 1 + 1e-9)
    ]
    assert (counts >= nudged[0]).all()
    assert (counts <= np.maximum(nudged[1], oracle.paper(sparsity, length, budget, floor))).all()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"sparsity": [0.5, float("nan")]}, PolicyError, "sparsity of layer 1 is nan; it must lie in [0, 1]"),
        ({"sparsity": [-0.1, 0.2]}, PolicyError, "sparsity of layer 0 is -0.1; it must lie in [0, 1]"),
        ({"sparsity": [[0.5]]}, OperatorError, "sparsity has shape [1, 1]; one prompt's [L] is wanted"),
        ({"length": -1}, OperatorError, "length -1 is negative; 0 is an empty prompt"),
        ({"rule": "fair"}, PolicyError, "unknown rule 'fair'; known: exact, paper"),
        ({"floor": 1.5}, PolicyError, "floor 1.5 is outside [0, 1]"),
        ({"floor": float("nan")}, PolicyError, "floor nan is outside [0, 1]"),
        ({"ceiling": 0}, PolicyError, "ceiling 0 is under 1; a layer keeps at least one token"),
        ({"ceiling": [1, 2, 3]}, OperatorError, "ceiling has shape [3]; one number or [2] is wanted"),
        (
            {"ceiling": 0.5},
            OperatorError,
            "ceiling has dtype float64; counts of tokens (integers) are wanted",
        ),
    ],
)
def test_errors(change, error, text):
    with pytest.raises(error) as caught:
        allocate(**{"sparsity": [0.5, 0.6], "length": 10, "budget": 0.5, **change})
    assert str(caught.value).startswith(f"[allocate] {text}")


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.1, float("nan")])
def test_budget_outside_its_range(budget):
    with pytest.raises(PolicyError, match=r"outside \(0, 1\]"):
        allocate([0.5], 10, budget)


def test_every_implementation_is_the_hosts(rng):
    from vlkv import ops
    from vlkv.errors import OperatorError

    shares = rng.random(7)
    for implementation in (None, "native", "reference"):
        counts = ops.allocate(shares, 500, 0.2, implementation=implementation)
        np.testing.assert_array_equal(counts, allocate(shares, 500, 0.2))
    with pytest.raises(OperatorError, match="unknown implementation 'cuda'; known: native, reference"):
        ops.allocate(shares, 500, 0.2, implementation="cuda")
