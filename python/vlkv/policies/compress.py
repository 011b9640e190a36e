"""Compression after prefill: splits the budget over layers, evicts from each layer, and frees the rest."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.base import Backend
from vlkv.backend.cache import Array, Cache, HostStore
from vlkv.ops.allocation import allocate, kept_of_all
from vlkv.ops.recall import RecallStore
from vlkv.policies.anchors import rated
from vlkv.policies.mix import mixed
from vlkv.policies.observe import Observer
from vlkv.policies.policy import Policy
from vlkv.policies.pool import pool
from vlkv.policies.protect import claimed, text_first
from vlkv.policies.windows import kept_within


def split_budget(
    policy: Policy,
    sparsity: NDArray[np.float64],
    length: int,
    budget: float,
    observed: int = 0,
    ceiling: Sequence[int] | None = None,
    windows: Sequence[int] = (),
) -> NDArray[np.int64]:
    """The number `[L]` of a prompt's `length` tokens that each layer keeps; uniform allocation assumes equal sparsity.

    `sparsity` `[L]` is what the policy's allocation splits by: see `Observer.shares`. `observed` is the number of
    observed rows: under a pyramid every layer keeps at least the tokens that always stay. `ceiling` `[L]` is the number
    of slots of each layer. `windows` `[L]` are the sliding windows that the answer exceeds, 0 for other layers: such a
    layer keeps at most the tokens that its window lets the next token see.
    """
    most = [kept_within(length, window) for window in windows or (0,) * len(sparsity)]
    if policy.keeps_all:
        return np.array(most, np.int64)
    shares, floor = np.zeros_like(sparsity), policy.floor
    if policy.allocation in ("sparsity", "vision"):
        shares = sparsity
    elif policy.allocation == "pyramid" and length:
        stay = min(observed if policy.keep_observed else 0, length) / length
        steps = pyramid(len(sparsity), budget, policy.beta, 1.0 - stay)
        shares, floor = 1.0 - steps / steps.max(), max(floor, stay)
    counts = allocate(shares, length, budget, rule=policy.rule, floor=floor, ceiling=ceiling)
    return np.minimum(counts, np.array(most, np.int64))


def most_kept(policy: Policy, layers: int, length: int, budget: float) -> int:
    """The most tokens that all layers together can keep of a prompt of `length` tokens, whatever the observation.

    Sliding windows are ignored.
    """
    if policy.keeps_all:
        return layers * length
    kept = kept_of_all(layers, length, budget)
    if policy.rule == "paper":
        kept += ceil(policy.floor * length) * layers
    return min(kept, layers * length)


def pyramid(layers: int, budget: float, beta: float, most: float = 1.0) -> NDArray[np.float64]:
    """Shares `[L]` of a prompt that decrease linearly from the first layer to the last, with mean `budget`.

    The last share is budget / beta, and the first 2 * budget - last. If that exceeds `most`, the first is `most` and
    the last follows from the mean, but is at most the first (arXiv 2406.02069, section 4.2).
    """
    last = budget / beta
    first = 2 * budget - last
    if first > most:
        first = max(most, budget)
        last = 2 * budget - first
    return np.linspace(first, last, layers) if layers > 1 else np.full(layers, budget)


def always_kept(policy: Policy, count: int, observed: int, first: int = 0) -> tuple[int, int]:
    """How many of a layer's `count` tokens are the prompt's first and its last tokens, regardless of their scores.

    `first` is the oldest position that the layer's window lets it see.
    """
    sinks = min(max(0, policy.sinks - first), count)
    recent = max(round(policy.recent * count), policy.recent_tokens, observed if policy.keep_observed else 0)
    return sinks, min(recent, count - sinks)


def _rows(cache: Cache, array: Array) -> NDArray[np.float32]:
    """A layer's keys or values as float32 `[Hkv, C, D]`; those of int8 caches stay rotated."""
    assert isinstance(cache.store, HostStore)  # `check_fit` has refused others
    return cache.store.rows(array)


def compress(
    policy: Policy,
    cache: Cache,
    observer: Observer,
    counts: NDArray[np.int64],
    capacity: Sequence[int],
    backend: Backend,
    keep_source: bool = False,
    target: Cache | None = None,
    windows: Sequence[int] = (),
    recall: RecallStore | None = None,
) -> tuple[Cache, list[NDArray[np.int32]]]:
    """Moves the kept tokens of one prompt to arrays of the right size. The given cache is emptied layer by layer.

    Args:
        policy: the tokens that always stay, and whether heads select separately.
        cache: the cache of the whole prompt, B = 1.
        observer: the prompt's scores, and which of its slots are image tokens.
        counts: the number of tokens to keep, `[L]`.
        capacity: the slots of each layer, `[L]`, for kept and new tokens.
        backend: runs the eviction.
        keep_source: whether to leave the given cache unchanged.
        target: the cache that receives the kept tokens (B = 1); None allocates one.
        windows: the sliding windows `[L]` that the answer exceeds, 0 for other layers. Such a layer keeps only tokens
            that the next token sees, and the same ones in all heads, because a token leaves all heads at once.
        recall: takes what is evicted.

    Returns:
        The compressed cache, and the kept positions per layer, `[Hkv, count]`.
    """
    small = target or cache.like(capacity)
    positions = []
    for layer, count in enumerate(int(n) for n in counts):
        window = windows[layer] if windows else 0
        end = int(cache.length[layer, 0])
        first = end - kept_within(end, window)
        sinks, recent = always_kept(policy, count, observer.stays, first)
        length = end - first
        rating = pool(observer.scores[layer][:, :, first:], policy.pooling, policy.kernel, length - recent)
        if policy.diversity != "none":
            keys, values = (_rows(cache, kind[layer][0, :, first:end]) for kind in (cache.keys, cache.values))
            rating = mixed(rating, keys, values, length - recent)
        between, free = (sinks, length - recent), count - sinks - recent
        rating = rated(rating, policy.anchors, between, free)
        per_head = policy.per_head and not window
        if policy.protects_text:
            text = ~observer.image[first:end]
            rating = text_first(rating, text, between, free, claimed(policy, count), per_head)
        kept = backend.evict(
            (cache.keys[layer][:, :, first:end], cache.values[layer][:, :, first:end]),
            rating,
            (count, sinks, recent),
            (small.keys[layer][:, :, :count], small.values[layer][:, :, :count]),
            per_head,
            policy.merge != "none",
        )
        if recall is not None:
            recall.add(layer, cache.keys[layer][:, :, :end], cache.values[layer][:, :, :end], kept)
        if not keep_source:
            cache.free(layer)
        small.length[layer] = count
        positions.append(kept + np.int32(first))
    return small, positions
