"""Evict by its definition, one head of one prompt at a time, in float64."""

import math

import numpy as np


def evict(key, value, score, length, keep, sinks, recent, capacity, per_head, merge):
    """Takes key, value [B, H, C, D], score [B, H, C], length, keep, sinks, recent [B]; returns key, value, position.

    The outputs are [B, H, capacity, D] float64 twice and [B, H, capacity] int32. Slots beyond the kept ones are zero
    with position -1. `merge` is "none" or "nearest_mean".
    """
    batch, heads, _, dim = key.shape
    new_key = np.zeros((batch, heads, capacity, dim))
    new_value = np.zeros((batch, heads, capacity, dim))
    position = np.full((batch, heads, capacity), -1, np.int32)
    for b in range(batch):
        if sinks[b] + recent[b] > keep[b]:
            raise ValueError("sinks + recent > keep")
        if min(keep[b], length[b]) > capacity:
            raise ValueError("capacity < min(keep, length)")
        for h in range(heads):
            with np.errstate(invalid="ignore"):
                summed = np.sum(score[b], axis=0, dtype=np.float64)
            rating = score[b, h] if per_head else summed
            kept = select(rating, int(length[b]), int(keep[b]), int(sinks[b]), int(recent[b]))
            position[b, h, : len(kept)] = kept
            for old, new in ((key, new_key), (value, new_value)):
                rows = old[b, h].astype(np.float64)
                new[b, h, : len(kept)] = merged(rows, kept, int(length[b])) if merge != "none" else rows[kept]
    return new_key, new_value, position


def select(score, length, keep, sinks, recent):
    """Lists the kept positions, ascending: the first, the last, then by score. Ties go to the lower position."""
    if keep >= length:
        return list(range(length))
    always = [j for j in range(length) if j < sinks or j >= length - recent]
    others = [j for j in range(length) if j not in always]
    others.sort(key=lambda j: (math.isnan(score[j]), 0.0 if math.isnan(score[j]) else -score[j], j))
    return sorted(always + others[: keep - len(always)])


def merged(rows, kept, length):
    """Averages each kept row with the evicted rows nearest to it. Ties go to the lower row."""
    if not kept:
        return np.zeros((0, rows.shape[1]))
    groups = {anchor: [rows[anchor]] for anchor in kept}
    for j in range(length):
        if j not in kept:
            groups[min(kept, key=lambda anchor: (abs(anchor - j), anchor))].append(rows[j])
    return np.stack([np.mean(groups[anchor], axis=0) for anchor in kept])
