"""After prefill: the budget is split over layers, each layer is cut to its share, and the rest is freed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlkv.allocate import allocate
from vlkv.backend.base import Backend
from vlkv.cache import Cache
from vlkv.observe import Observer
from vlkv.policy import Policy


def split_budget(
    policy: Policy,
    sparsity: NDArray[np.float64],
    length: int,
    budget: float,
    ceiling: Sequence[int] | None = None,
) -> NDArray[np.int64]:
    """How many of a prompt's `length` tokens each layer keeps, `[L]`; equal layers are those of equal sparsity.

    `ceiling` `[L]` is the most that each has slots for.
    """
    shares = sparsity if policy.allocation == "sparsity" else np.zeros_like(sparsity)
    return allocate(shares, length, budget, rule=policy.rule, floor=policy.floor, ceiling=ceiling)


def compress(
    policy: Policy,
    cache: Cache,
    observer: Observer,
    counts: NDArray[np.int64],
    room: int,
    backend: Backend,
    slot: Cache | None = None,
) -> tuple[Cache, list[NDArray[np.int32]]]:
    """Moves what is kept of one prompt into right-sized arrays. The given cache is emptied layer by layer.

    Args:
        policy: what always stays, and whether heads choose alone.
        cache: the whole prompt's, B = 1.
        observer: its scores.
        counts: tokens to keep, `[L]`.
        room: slots for new tokens behind the kept ones.
        backend: runs the eviction.
        slot: where the kept tokens go (B = 1); None makes arrays of their size.

    Returns:
        The small cache, and per layer the kept positions `[Hkv, count]`.
    """
    small = slot or cache.like([int(count) + room for count in counts])
    positions = []
    for layer, count in enumerate(int(n) for n in counts):
        length = int(cache.length[layer, 0])
        sinks = min(policy.sinks, count)
        recent = min(round(policy.recent * count), count - sinks)
        kept = backend.evict(
            (cache.keys[layer][:, :, :length], cache.values[layer][:, :, :length]),
            observer.scores[layer],
            (count, sinks, recent),
            (small.keys[layer][:, :, :count], small.values[layer][:, :, :count]),
            policy.per_head,
            policy.merge != "none",
        )
        cache.free(layer)
        small.length[layer] = count
        positions.append(kept)
    return small, positions
