"""Evicted tokens in pages with bounds, and attention over a cache and the best pages, by their definition in float64.

Source: Quest (arXiv 2406.10774); `cpp/include/vlkv/recall.h` gives the format and the rating.
"""

import numpy as np


def outwards(numbers, up):
    """Rounds float32 numbers to bfloat16, up or down."""
    bits = np.asarray(numbers, np.float32).view(np.uint32)
    cut = (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)  # towards zero
    exact = np.asarray(numbers, np.float32).astype(np.float64)
    _, exponent = np.frexp(np.where(cut == 0, 2.0**-126, cut))
    step = np.ldexp(1.0, np.maximum(exponent - 1, -126) - 7)
    return np.where(exact > cut, cut + step * up, np.where(exact < cut, cut - step * (not up), cut))


def evicted(slots, kept):
    """The slots that are not kept, ascending."""
    return np.setdiff1d(np.arange(slots), kept)


def pages(keys, page):
    """Bounds [pages, 2, D] float64 of keys [n, D] float32, not rotated; NaN where a page is not finite."""
    found = []
    for first in range(0, len(keys), page):
        part = keys[first : first + page]
        if np.isfinite(part).all():
            found.append([outwards(part.min(0), False), outwards(part.max(0), True)])
        else:
            found.append(np.full((2, keys.shape[1]), np.nan))
    return np.array(found).reshape(-1, 2, keys.shape[1])


def ratings(queries, bounds, largest):
    """Ratings [pages] for scaled queries [G, D] and each one's largest logit [G] over the cache."""
    low, high = queries[:, None] * bounds[None, :, 0], queries[:, None] * bounds[None, :, 1]
    bound = np.maximum(low, high).sum(-1)
    rating = bound - largest[:, None]
    return np.where(np.isnan(rating), np.inf, rating).max(0)


def choose(rating, count):
    """The pages with the largest ratings, ties to the lower, ascending."""
    return np.sort(np.lexsort((np.arange(len(rating)), -rating))[:count])


def gap(rating, count):
    """How far the worst chosen page's rating is from the best page that is not; infinite if all are."""
    order = np.sort(rating)[::-1]
    return np.inf if count >= len(order) else order[count - 1] - order[count]


def attend(query, keys, values, prompts, page, count, scale):
    """Attention of one token per prompt, over its cache and its pages.

    query [B, Hq, D]. keys, values: per prompt [Hkv, n, D], the cache's valid slots. prompts: per prompt None, or three
    arrays [Hkv, m, D] of the evicted tokens in order: keys that the bounds are of (float32), and the keys and values
    that their 8 bits hold. page: tokens of a page; count: pages read.

    Returns result and magnitude [B, Hq, D], the chosen pages by (prompt, KV head), and the smallest gap of a choice.
    """
    query = query.astype(np.float64)
    batch, query_heads, _ = query.shape
    group = query_heads // keys[0].shape[0]
    result, magnitude, chosen, smallest = np.zeros(query.shape), np.zeros(query.shape), {}, np.inf
    for b, head in np.ndindex(batch, query_heads // group):
        queries = scale * query[b, head * group : (head + 1) * group]
        seen, mean = keys[b][head].astype(np.float64), values[b][head].astype(np.float64)
        if prompts[b] is not None:
            largest = (queries @ seen.T).max(1)
            exact, more, other = (array[head] for array in prompts[b])
            rating = ratings(queries, pages(exact, page), largest)
            chosen[b, head] = choose(rating, count)
            smallest = min(smallest, gap(rating, count))
            rows = [n for p in chosen[b, head] for n in range(p * page, min((p + 1) * page, len(more)))]
            seen, mean = np.concatenate([seen, more[rows]]), np.concatenate([mean, other[rows]])
        logits = queries @ seen.T
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        part = slice(head * group, (head + 1) * group)
        result[b, part], magnitude[b, part] = weights @ mean, weights @ np.abs(mean)
    return result, magnitude, chosen, smallest
