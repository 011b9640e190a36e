"""After prefill: the budget is split over layers, each layer is cut to its share, and the rest is freed."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.base import Backend
from vlkv.backend.cache import Cache
from vlkv.ops.allocation import allocate
from vlkv.policies.anchors import rated
from vlkv.policies.observe import Observer
from vlkv.policies.policy import Policy
from vlkv.policies.pool import pool
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
    """How many of a prompt's `length` tokens each layer keeps, `[L]`; equal layers are those of equal sparsity.

    `observed` is the number of observed rows: a pyramid is no narrower than those that always stay.
    `ceiling` `[L]` is the most that each layer has slots for. `windows` `[L]` are those that the answer goes past, 0
    for others: a layer keeps the smaller of its share and what its window lets the next token see.
    """
    most = [kept_within(length, window) for window in windows or (0,) * len(sparsity)]
    if policy.keeps_all:
        return np.array(most, np.int64)
    shares, floor = np.zeros_like(sparsity), policy.floor
    if policy.allocation == "sparsity":
        shares = sparsity
    elif policy.allocation == "pyramid" and length:
        stay = min(observed if policy.keep_observed else 0, length) / length
        steps = pyramid(len(sparsity), budget, policy.beta, 1.0 - stay)
        shares, floor = 1.0 - steps / steps.max(), max(floor, stay)
    counts = allocate(shares, length, budget, rule=policy.rule, floor=floor, ceiling=ceiling)
    return np.minimum(counts, np.array(most, np.int64))


def most_kept(policy: Policy, layers: int, length: int, budget: float) -> int:
    """The most tokens that all layers of a prompt of `length` tokens keep together, whatever is observed.

    Windows are not looked at.
    """
    if policy.keeps_all:
        return layers * length
    kept = max(round(budget * layers * length), layers)
    if policy.rule == "paper":
        kept += ceil(policy.floor * length) * layers
    return min(kept, layers * length)


def pyramid(layers: int, budget: float, beta: float, most: float = 1.0) -> NDArray[np.float64]:
    """Shares `[L]` of a prompt that fall evenly from the first layer to the last, `budget` on average.

    The last is budget / beta, unless the first, 2 * budget - last, were more than `most`: then the first is `most`
    and the last is what remains, the first at the most (arXiv 2406.02069, section 4.2).
    """
    last = budget / beta
    first = 2 * budget - last
    if first > most:
        first = max(most, budget)
        last = 2 * budget - first
    return np.linspace(first, last, layers) if layers > 1 else np.full(layers, budget)


def always_kept(policy: Policy, count: int, observed: int, first: int = 0) -> tuple[int, int]:
    """How many of a layer's `count` tokens are the prompt's first, and its last, whatever their score.

    `first` is the oldest position that a layer's window lets it see.
    """
    sinks = min(max(0, policy.sinks - first), count)
    recent = max(round(policy.recent * count), policy.recent_tokens, observed if policy.keep_observed else 0)
    return sinks, min(recent, count - sinks)


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
) -> tuple[Cache, list[NDArray[np.int32]]]:
    """Moves what is kept of one prompt into right-sized arrays. The given cache is emptied layer by layer.

    Args:
        policy: what always stays, and whether heads choose alone.
        cache: the whole prompt's, B = 1.
        observer: its scores.
        counts: tokens to keep, `[L]`.
        capacity: slots of each layer, `[L]`: for what is kept and for new tokens.
        backend: runs the eviction.
        keep_source: leaves the given cache as it is.
        target: where the kept tokens go (B = 1); None makes arrays of that capacity.
        windows: `[L]`, those that the answer goes past, 0 for others. Such a layer keeps tokens that the next one sees,
            the same in all heads, as a token leaves all of them at once.

    Returns:
        The small cache, and per layer the kept positions `[Hkv, count]`.
    """
    small = target or cache.like(capacity)
    positions = []
    for layer, count in enumerate(int(n) for n in counts):
        window = windows[layer] if windows else 0
        end = int(cache.length[layer, 0])
        first = end - kept_within(end, window)
        sinks, recent = always_kept(policy, count, len(observer.rows), first)
        length = end - first
        rating = pool(observer.scores[layer][:, :, first:], policy.pooling, policy.kernel, length - recent)
        rating = rated(rating, policy.anchors, (sinks, length - recent), count - sinks - recent)
        kept = backend.evict(
            (cache.keys[layer][:, :, first:end], cache.values[layer][:, :, first:end]),
            rating,
            (count, sinks, recent),
            (small.keys[layer][:, :, :count], small.values[layer][:, :, :count]),
            policy.per_head and not window,
            policy.merge != "none",
        )
        if not keep_source:
            cache.free(layer)
        small.length[layer] = count
        positions.append(kept + np.int32(first))
    return small, positions
