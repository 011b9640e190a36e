"""Attention of one new token per prompt by its definition, one head at a time, in float64."""

import numpy as np


def attend(query, key, value, key_cache, value_cache, last, scale):
    """Appends, then attends. Returns result [B, Hq, D], both caches, and magnitude [B, Hq, D], which bounds the error.

    query [B, Hq, D], key, value [B, Hkv, D] of the new token, key_cache, value_cache [B, Hkv, C, D], last [B].

    The new token takes slot last[b] and sees slots 0..last[b]. magnitude is the attention-weighted sum of |value|.
    """
    query, key_cache, value_cache = (array.astype(np.float64) for array in (query, key_cache, value_cache))
    batch, query_heads, _ = query.shape
    group = query_heads // key_cache.shape[1]
    result, magnitude = np.zeros(query.shape), np.zeros(query.shape)
    for b in range(batch):
        key_cache[b, :, last[b]], value_cache[b, :, last[b]] = key[b], value[b]
        for h in range(query_heads):
            keys, values = (cache[b, h // group, : last[b] + 1] for cache in (key_cache, value_cache))
            logits = scale * keys @ query[b, h]
            weights = np.exp(logits - logits.max())
            result[b, h] = weights @ values / weights.sum()
            magnitude[b, h] = weights @ np.abs(values) / weights.sum()
    return result, key_cache, value_cache, magnitude


def attend_stored(query, keys, values, first, last, scale, own=None):
    """Attends over caches that hold the new tokens already. Returns result and magnitude, [B, S, Hq, D] both.

    query [B, S, Hq, D], keys, values [B, Hkv, C, D], first, last [B]. Token i of prompt b sees slots 0..first[b] + i;
    tokens after slot last[b] are padding, whose result is 0. own: keys and values [B, S, Hkv, D] of the new tokens;
    each token sees its own row, slot first[b] + i, as they give it, and not as it is stored.
    """
    query = query.astype(np.float64)
    group = query.shape[2] // keys.shape[1]
    result, magnitude = np.zeros(query.shape), np.zeros(query.shape)
    for b, i, h in np.ndindex(query.shape[:3]):
        slots = first[b] + i + 1
        if slots > last[b] + 1:
            continue
        seen, mean = keys[b, h // group, :slots], values[b, h // group, :slots]
        if own is not None:
            seen, mean = (
                np.concatenate([rows[:-1], given[b, i, h // group][np.newaxis]])
                for rows, given in zip((seen, mean), own, strict=True)
            )
        logits = scale * seen @ query[b, i, h]
        weights = np.exp(logits - logits.max())
        result[b, i, h] = weights @ mean / weights.sum()
        magnitude[b, i, h] = weights @ np.abs(mean) / weights.sum()
    return result, magnitude
