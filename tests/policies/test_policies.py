"""Policies as data: what each keeps of random tensors, examples worked by hand, and contradictory fields."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from oracles import policies as oracle
from policies.facts import small_text
from vlkv import POLICIES, Policy
from vlkv.backend.base import ObservedQueries
from vlkv.backend.cache import Cache
from vlkv.errors import PolicyError
from vlkv.policies.anchors import rated
from vlkv.policies.builtin import resolve
from vlkv.policies.compress import always_kept, compress, pyramid, split_budget
from vlkv.policies.observe import Observer, observed_rows
from vlkv.policies.pool import pool
from vlkv.storage.manifest import TextFacts

LAYERS, HEADS, GROUP, DIM = 4, 2, 3, 16
FACTS = small_text(LAYERS, HEADS * GROUP, HEADS, DIM)
# A float32 logit of 16 terms is at most about 8 here and errs by 16 * 2^-24 * 8. A weight has this relative error.
MARGIN = 1e-5
NAMES = [name for name, policy in POLICIES.items() if policy.rows != "probe" and name != "full"]


def replace_facts(**sizes):
    """Returns other sizes of a text model."""
    return TextFacts(**{name: getattr(FACTS, name) for name in FACTS.__struct_fields__} | sizes)


def softmax(query, key):
    """Returns causal attention `[Hq, T, T]` in float64."""
    logits = np.einsum("htd,hsd->hts", query, np.repeat(key, GROUP, axis=0)) * DIM**-0.5
    logits[:, ~np.tril(np.ones(logits.shape[1:], bool))] = -np.inf
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("operators", ["native", "functions"])
@pytest.mark.parametrize("name", NAMES)
def test_random_tensors(engine_of, rng, name, operators):
    backend = engine_of("llama-old", operators).model.backend
    for length, last_image, budget, window in (
        (57, 31, 0.3, 5),
        (90, -1, 0.15, 8),
        (40, 39, 0.5, 4),
        (1, -1, 0.1, 8),
    ):
        policy = replace(POLICIES[name], window=window)
        # layers differ in how peaked their attention is
        sharp = np.linspace(1.0, 4.0, LAYERS)[:, None, None, None]
        query = (rng.normal(size=(LAYERS, HEADS * GROUP, length, DIM)) * sharp).astype(np.float32)
        key, value = (rng.normal(size=(LAYERS, HEADS, length, DIM)).astype(np.float32) for _ in range(2))
        attention = np.stack(
            [softmax(q, k) for q, k in zip(query.astype(float), key.astype(float), strict=True)]
        )
        cache = Cache([k[None] for k in key], [v[None] for v in value], np.full((LAYERS, 1), length))
        rows = observed_rows(policy, length, last_image)
        image = range(max(0, last_image // 3), last_image + 1)
        observer = Observer(FACTS, policy, length, rows, 1)
        observer.image = np.isin(np.arange(length), image)
        for part in np.array_split(np.array(rows, np.int64), 3):
            observer.add(ObservedQueries([q[None, :, part] for q in query]), cache, part)
        observer.finish(cache)
        counts = split_budget(policy, observer.shares(policy), length, budget, len(rows))
        _, kept = compress(policy, cache, observer, counts, counts + 2, backend)
        want, scores = oracle.kept(
            name,
            attention,
            HEADS,
            last_image,
            budget,
            window,
            gamma=observer.sparsity,
            image=image,
            keys=key.astype(float),
            values=value.astype(float),
        )
        if name == "vl-cache":
            gamma, near = oracle.sparsity(attention, rows)
            assert (np.abs(observer.sparsity - gamma) <= near).all()
        assert counts.tolist() == [len(layer[0]) for layer in want]
        for mine, lists, rating in zip(kept, want, scores, strict=True):
            for got, theirs, score in zip(mine.tolist(), lists, rating, strict=True):
                gone, extra = sorted(set(theirs) - set(got)), sorted(set(got) - set(theirs))
                assert sorted(score[gone]) == pytest.approx(sorted(score[extra]), rel=MARGIN)


def test_vl_cache_by_hand():
    """Algorithm 1 of arXiv 2410.23317 with L = 3, alpha = 0.2, 100 tokens, sparsities 0.5, 0.7, 0.9.

    1 - gamma is 0.5, 0.3, 0.1, with sum 0.9. The shares (1 - gamma) / 0.9 * 3 * 0.2 are 1/3, 1/5, 1/15.
    """
    gamma = np.array([0.5, 0.7, 0.9])
    paper = split_budget(replace(POLICIES["vl-cache"], rule="paper"), gamma, 100, 0.2)
    assert paper.tolist() == [33, 20, 7]
    assert split_budget(POLICIES["vl-cache"], gamma, 100, 0.2).tolist() == [33, 20, 7]
    # at alpha = 0.7 the shares are 1.1667, 0.7, 0.2333; the first is clipped to 1: 193 of 210 tokens
    paper = split_budget(replace(POLICIES["vl-cache"], rule="paper"), gamma, 100, 0.7)
    assert paper.tolist() == [100, 70, 23]
    # the exact rule shares the other 110 as 3 : 1, 82.5 and 27.5, the half token to the denser
    assert split_budget(POLICIES["vl-cache"], gamma, 100, 0.7).tolist() == [100, 83, 27]
    # a layer's recent tokens are a tenth of its own count
    assert [always_kept(POLICIES["vl-cache"], count, 0) for count in (33, 20, 7)] == [(0, 3), (0, 2), (0, 1)]


def test_vl_cache_sparsity_by_hand():
    """Section 4.1: the first query attends to four keys with 0.5, 0.4, 0.0999, 0.0001, the second evenly.

    One of eight pairs lies below 0.01 times the row's largest.
    """
    facts = replace_facts(layers=1, query_heads=2, kv_heads=1)
    query, key = np.zeros((1, 2, 1, DIM), np.float32), np.zeros((1, 1, 4, DIM), np.float32)
    key[0, 0, :, 0] = np.log([0.5, 0.4, 0.0999, 0.0001]) * DIM**0.5
    query[0, 0, 0, 0] = 1.0
    observer = Observer(facts, POLICIES["vl-cache"], 4, range(3, 4), 1)
    observer.add(ObservedQueries([query]), Cache([key], [key], np.array([[4]])), np.array([3]))
    assert observer.sparsity.tolist() == [1 / 8]
    np.testing.assert_allclose(observer.scores[0][0, 0], [0.75, 0.65, 0.3499, 0.2501], rtol=1e-6)


def test_elastic_cache_by_hand(engine_of):
    """Ten tokens, gamma = 0.4: the first, the last, and the two of highest importance are anchors.

    Importance is the mean over heads of column sums, given here as 0, 1, 9, 1, 1, 1, 8, 1, 1, 0: anchors 0, 2, 6, 9.
    Buckets end at floor((t_k + t_{k+1}) / 2) = 1, 4, 7: tokens 0 1 | 2 3 4 | 5 6 7 | 8 9.
    """
    policy = POLICIES["elastic"]
    backend = engine_of("llama-old").model.backend
    scores = np.array([0, 1, 9, 1, 1, 1, 8, 1, 1, 0], np.float32)
    observer = Observer(FACTS, policy, 10, range(10), 1)
    for score in observer.scores:
        # heads disagree; their mean decides
        score[0, 0], score[0, 1] = scores + np.arange(10), scores - np.arange(10)
    numbers = np.arange(10, dtype=np.float32)
    shape = (1, HEADS, 10, DIM)
    keys, values = (
        [np.broadcast_to(x[None, None, :, None], shape).copy() for _ in range(LAYERS)]
        for x in (numbers, numbers**2)
    )
    counts = split_budget(policy, np.zeros(LAYERS), 10, 0.4)
    assert counts.tolist() == [4] * LAYERS
    cache, kept = compress(
        policy, Cache(keys, values, np.full((LAYERS, 1), 10)), observer, counts, counts + 1, backend
    )
    assert all((layer == [0, 2, 6, 9]).all() for layer in kept)
    for key, value in zip(cache.keys, cache.values, strict=True):
        np.testing.assert_array_equal(key[0, 0, :4, 0], [0.5, 3, 6, 8.5])
        np.testing.assert_allclose(value[0, 1, :4, 5], [0.5, 29 / 3, 110 / 3, 72.5], rtol=2.0**-23)


def test_pyramid_by_hand():
    """L = 3, budget 0.2, beta = 20: the last layer gets 0.01, the first 0.39, and the middle one 0.2.

    If the first exceeds `most`, it is clipped.
    """
    np.testing.assert_allclose(pyramid(3, 0.2, 20.0), [0.39, 0.2, 0.01])
    np.testing.assert_allclose(pyramid(3, 0.6, 20.0, 0.9), [0.9, 0.6, 0.3])
    np.testing.assert_allclose(pyramid(3, 0.95, 20.0, 0.9), [0.95] * 3)
    np.testing.assert_allclose(pyramid(1, 0.2, 20.0), [0.2])
    policy = POLICIES["pyramidkv"]
    assert split_budget(policy, np.zeros(3), 1000, 0.2, 0).tolist() == [390, 200, 10]
    # the last layer also keeps the window of 32, at the expense of the others in proportion
    assert split_budget(policy, np.zeros(3), 1000, 0.2, 32).tolist() == [375, 193, 32]


@pytest.mark.parametrize("kind", ["max", "mean"])
@pytest.mark.parametrize("end", [0, 1, 2, 6, 20])
def test_pooling(rng, kind, end):
    scores = rng.normal(size=(2, 3, 20)).astype(np.float32)
    definition = oracle.neighbours_largest if kind == "max" else oracle.neighbours_mean
    for kernel in (3, 7, 41):
        pooled = pool(scores, kind, kernel, end)
        for b, h in np.ndindex(2, 3):
            want = definition(scores[b, h].astype(np.float64), end, kernel)[:end]
            # a sum of up to 20 numbers in float64, rounded once
            np.testing.assert_allclose(pooled[b, h, :end], want, rtol=2.0**-23, atol=1e-12)
        assert (pooled[..., end:] == 0).all()
    assert pool(scores, "none", 1, end) is scores


@pytest.mark.parametrize("length", [0, 1, 2, 7, 60])
def test_anchors(rng, length):
    for first, last in ((0, 0), (2, 3)):
        scores = rng.integers(0, 9, (1, 2, first + length + last)).astype(np.float32)
        between = (first, first + length)
        assert rated(scores, "scores", between, 1) is scores
        total = scores[0, :, first : first + length].sum(axis=0).tolist()
        for count in {0, 1, length // 3, length} if length else {0}:
            published, spread = (rated(scores, kind, between, count) for kind in ("published", "spread"))
            assert published[0, 0, first : first + length].tolist() == oracle.published_anchors(total)
            assert spread[0, 0, first : first + length].tolist() == oracle.spread_anchors(length, count)
            assert spread.sum() == count
            assert not published[0, 1].any() and not spread[0, 1].any()


def test_rows_of_a_later_turn():
    vl = POLICIES["vl-cache"]
    assert observed_rows(vl, 80, 40, since=60) == range(60, 80)
    assert observed_rows(vl, 80, 70, since=60) == range(71, 80)
    assert observed_rows(vl, 80, -1, since=60) == range(48, 80)
    assert observed_rows(POLICIES["elastic"], 80, 40, since=60) == range(80)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rows": "some"}, "rows 'some' is unknown; known: none, post_vision, all, last"),
        ({"decode": None}, "decode None is unknown; known: append, sliding, lowest, fixed_point"),
        (
            {"merge": "nearest_mean", "rows": "all"},
            "merge 'nearest_mean' needs one selection .* per_head=False",
        ),
        ({"anchors": "spread"}, "anchors 'spread' need one selection .* per_head=False"),
        ({"recent": 1.2}, "recent 1.2 is outside 0 to 1"),
        ({"recent": float("nan")}, "recent nan is outside 0 to 1"),
        ({"threshold": -0.1}, "threshold -0.1 is outside 0 to 1"),
        ({"floor": "much"}, "floor 'much' is outside 0 to 1"),
        ({"beta": 0.5}, "beta 0.5 is outside 1 to 1e"),
        ({"window": 0}, "window 0 is not a whole number of at least 1"),
        ({"sinks": -1}, "sinks -1 is not a whole number of at least 0"),
        ({"sinks": True}, "sinks True is not a whole number"),
        ({"recent_tokens": 2.5}, "recent_tokens 2.5 is not a whole number"),
        ({"pooling": "max"}, "kernel 1 does not fit pooling 'max'"),
        ({"kernel": 3}, "kernel 3 does not fit pooling 'none'"),
        ({"pooling": "max", "kernel": 4}, "kernel 4 is even"),
        ({"per_head": 1}, "per_head 1 is neither True nor False"),
        ({"allocation": "sparsity"}, "allocation 'sparsity' needs observed rows"),
        ({"allocation": "all", "rows": "all"}, "allocation 'all' evicts nothing"),
        ({"keep_observed": True}, "keep_observed True does not fit rows 'none'"),
        ({"keep_observed": True, "rows": "all"}, "keep_observed True does not fit rows 'all'"),
    ],
    ids=str,
)
def test_fields_that_are_wrong_or_contradict(wrong, words):
    with pytest.raises(PolicyError, match=f"policy 'mine': {words}") as caught:
        Policy("mine", **wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", " ", None, 3])
def test_names(name):
    with pytest.raises(PolicyError, match="name"):
        Policy(name)


def test_known_policies():
    assert all(resolve(name) is policy and policy.name == name for name, policy in POLICIES.items())
    with pytest.raises(
        PolicyError,
        match=f"known: {', '.join(POLICIES)}",
    ):
        resolve("lru")
    # every field is described
    assert all(f"        {field.name}: " in (Policy.__doc__ or "") for field in fields(Policy))


def test_a_threshold_that_an_engine_of_functions_lacks(engine_of):
    policy = replace(POLICIES["vl-cache"], threshold=0.05)
    with pytest.raises(
        PolicyError, match=r"threshold 0\.05 does not fit this engine of operators 'functions'"
    ):
        engine_of("llama-old", "functions").generate("what", policy=policy)
    assert engine_of("llama-old").generate("what is", policy=policy, max_new_tokens=1).policy == "vl-cache"
