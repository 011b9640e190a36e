"""Compares sampled tokens with transformers' warpers, and tests settings outside their range."""

import math
import warnings
from typing import Any

import numpy as np
import pytest

from vlkv.errors import SamplingError, VlkvError
from vlkv.generation.sampling import Sampler, Sampling, kept_tokens

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


def draws(sampling: Sampling, logits: np.ndarray, count: int) -> list[int]:
    sampler = Sampler(sampling)
    return [sampler.pick(logits) for _ in range(count)]


def test_greedy_takes_the_lowest_of_the_largest() -> None:
    assert Sampler(Sampling()).pick(np.array([1, 7, -3, 7, 7], np.float32)) == 1
    assert Sampler(Sampling()).pick(np.array([-math.inf, -5, -math.inf], np.float32)) == 1
    assert Sampler(Sampling(top_k=1, temperature=3.0)).pick(np.array([0, 2, 1], np.float32)) == 1


def test_greedy_reads_a_view_and_makes_no_copy() -> None:
    rows = np.zeros((2, 100_000), np.float32)
    rows[1, 77] = 1
    rows.flags.writeable = False
    assert Sampler(Sampling()).pick(rows[1]) == 77


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 7, 1.0),
        (0.5, None, 0.9),
        (2.0, 20, 0.5),
        (0.7, 3, 0.99),
        (1.3, 0, 0.01),
        (1.0, 500, 1.0),
        (9.0, 1, 0.3),
    ],
)
def test_kept_set_and_probabilities_equal_transformers(
    temperature: float, top_k: int | None, top_p: float
) -> None:
    warpers: list[Any] = [TemperatureLogitsWarper(temperature)]
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    compared = 0
    for seed in range(40):
        print(f"seed {seed}")
        logits = np.random.default_rng(seed).normal(0, 4, 300).astype(np.float32)
        scores = torch.from_numpy(logits)[None]
        for warper in warpers:
            scores = warper(None, scores)
        want = torch.softmax(scores[0].double(), 0).numpy()
        ids, weight = kept_tokens(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
        if _is_on_the_edge(logits, temperature, top_k, top_p):
            continue
        compared += 1
        assert ids.tolist() == np.flatnonzero(want).tolist()
        # transformers divides by the temperature in float32: relative error eps * |logit| in each exponent
        bound = 4 * np.finfo(np.float32).eps * np.abs(logits).max() / temperature + 1e-12
        np.testing.assert_allclose(weight / weight.sum(), want[ids], rtol=bound)
    assert compared >= 35


def _is_on_the_edge(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float) -> bool:
    """Returns whether float32's cumulative sum, off by up to V eps, can fall on the other side of 1 - top_p."""
    if top_p == 1:
        return False
    _, weight = kept_tokens(logits, Sampling(temperature=temperature, top_k=top_k))
    shares = np.cumsum(np.sort(weight)) / weight.sum()
    return bool(np.abs(shares - (1 - top_p)).min() < len(logits) * np.finfo(np.float32).eps)


def test_top_k_keeps_ties_like_transformers() -> None:
    logits = np.array([3, 1, 2, 2, 2], np.float32)
    ids, _ = kept_tokens(logits, Sampling(temperature=1.0, top_k=2))
    want = TopKLogitsWarper(2)(None, torch.from_numpy(logits)[None])[0]
    assert ids.tolist() == torch.isfinite(want).nonzero().ravel().tolist() == [0, 2, 3, 4]


def test_draws_follow_the_probabilities() -> None:
    logits = np.array([0.0, 1.0, 2.0, -1.0, -math.inf], np.float32)
    count = 20_000
    found = np.bincount(draws(Sampling(temperature=1.0, seed=5), logits, count), minlength=5) / count
    want = np.exp(logits.astype(np.float64))
    want /= want.sum()
    # five standard deviations of a share of `count` draws
    assert (np.abs(found - want) <= 5 * np.sqrt(want * (1 - want) / count)).all()
    assert found[4] == 0


def test_top_p_and_top_k_limit_the_draws() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    assert set(draws(Sampling(temperature=1.0, top_p=0.75, seed=1), logits, 300)) == {0, 1}
    assert set(draws(Sampling(temperature=1.0, top_k=3, seed=1), logits, 300)) == {0, 1, 2}
    assert set(draws(Sampling(temperature=1.0, top_p=1e-9, seed=1), logits, 50)) == {0}
    assert len(kept_tokens(np.zeros(4, np.float32), Sampling(temperature=1.0, top_p=1e-300))[0]) == 1


def test_the_largest_random_number_takes_the_last_token() -> None:
    class Largest:
        def random(self) -> float:
            return float(np.nextafter(1.0, 0.0))

    for size in range(1, 200):
        sampler = Sampler(Sampling(temperature=1.0))
        sampler._random = Largest()  # type: ignore[assignment]
        assert sampler.pick(np.zeros(size, np.float32)) == size - 1


def test_a_seed_repeats_and_requests_do_not_disturb_each_other() -> None:
    logits = np.zeros(1000, np.float32)
    alone = draws(Sampling(temperature=1.0, seed=3), logits, 20)
    first, second = Sampler(Sampling(temperature=1.0, seed=3)), Sampler(Sampling(temperature=1.0, seed=4))
    mixed = [(first.pick(logits), second.pick(logits)) for _ in range(20)]
    assert [pair[0] for pair in mixed] == alone
    assert [pair[1] for pair in mixed] != alone
    unseeded = Sampling(temperature=1.0)
    assert draws(unseeded, logits, 20) != draws(unseeded, logits, 20)


@pytest.mark.parametrize("temperature", [1e-308, 1e-3, 1e308])
def test_extreme_logits_and_temperatures(temperature: float) -> None:
    logits = np.array([3e38, -3e38, 0], np.float32)
    picked = Sampler(Sampling(temperature=temperature, top_k=2, top_p=0.5, seed=0)).pick(logits)
    assert picked in ({0} if temperature < 1 else {0, 2})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [[0, math.nan, 1], [0, math.inf, 1], [-math.inf] * 3, [[0, 1]], []])
def test_broken_logits_are_told(temperature: float, bad: list[Any]) -> None:
    with pytest.raises(VlkvError, match="logits"):
        Sampler(Sampling(temperature=temperature)).pick(np.array(bad, np.float32))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "1"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", True),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 0.5),
        ("max_new_tokens", 0),
        ("max_new_tokens", 2.0),
        ("stop", [""]),
        ("stop", ["a", 3]),
        ("stop", 5),
        ("stop", None),
        ("stop", ["a"] * 65),
        ("stop", ["a" * 257]),
    ],
)
def test_settings_outside_their_range_are_named(name: str, value: object) -> None:
    with pytest.raises(SamplingError, match=f"^{name} ") as caught:
        Sampling(**{name: value})  # type: ignore[arg-type]
    assert str(caught.value).isprintable()


def test_settings_at_their_limits() -> None:
    sampling = Sampling(temperature=0, top_k=0, top_p=1, seed=2**64 - 1, max_new_tokens=1, stop=["a", "b"])
    assert sampling.stop == ("a", "b")
    assert Sampling(stop="end").stop == ("end",)
    Sampler(sampling)


def nucleus(logits: np.ndarray, top_p: float) -> set[int]:
    """Returns the smallest set of the largest, by sorting all in float64. Of equal ones the later stay."""
    weight = np.exp(logits.astype(np.float64) - float(logits.max()))
    order = np.argsort(weight, kind="stable")
    below = np.cumsum(weight[order]) <= (1 - top_p) * weight.sum()
    below[-1] = False
    return set(order[~below].tolist())


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 4.0])
def test_top_p_of_a_large_vocabulary_equals_a_sort_of_all(spread: float, top_p: float, rng) -> None:
    for size in (1023, 1025, 5000, 40_000):
        logits = np.round(rng.normal(0, spread, size), 3).astype(np.float32)
        found = set(kept_tokens(logits, Sampling(temperature=1.0, top_p=top_p))[0].tolist())
        want = nucleus(logits, top_p)
        # equal weights, summed in another order, can end a token earlier or later
        assert len(found ^ want) <= 1
        assert Sampler(Sampling(temperature=1.0, top_p=top_p)).pick(logits) in found


def test_top_p_sorts_no_whole_vocabulary(monkeypatch) -> None:
    sizes = []
    sort = np.sort
    monkeypatch.setattr(np, "sort", lambda values: sizes.append(len(values)) or sort(values))
    logits = np.random.default_rng(0).normal(0, 4, 128 * 1024).astype(np.float32)
    Sampler(Sampling(temperature=1.0, top_p=0.9)).pick(logits)
    assert sizes == [1024]
