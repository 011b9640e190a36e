"""The prompt tokens that each policy keeps, written down policy by policy from the papers, in float64.

Attention is that of eager softmax, `[L, Hq, T, T]`. Every function lists positions per layer and KV head.
"""

import math

import numpy as np

from oracles.allocate import filled

P = 0.01


def column_sums(attention, rows, kv_heads):
    """Returns attention summed over rows and over each KV head's query heads: `[L, Hkv, T]`."""
    layers, heads, _, length = attention.shape
    seen = attention[:, :, list(rows)]
    return seen.reshape(layers, kv_heads, heads // kv_heads, len(rows), length).sum(axis=(2, 3))


def sparsity(attention, rows, threshold=P):
    """Returns two shares `[L]` of the attended pairs.

    The first are those under `threshold` times the row's largest, the second those too near to it to tell.
    """
    seen = attention[:, :, list(rows)]
    attended = np.arange(attention.shape[-1])[None, :] <= np.array(list(rows))[:, None]
    limit = threshold * seen.max(axis=-1, keepdims=True)
    pairs = attention.shape[1] * attended.sum()
    near = (np.abs(seen / limit - 1) < 1e-3) & attended
    return ((seen < limit) & attended).sum(axis=(1, 2, 3)) / pairs, near.sum(axis=(1, 2, 3)) / pairs


def split(weights, length, budget, least):
    """Splits into whole tokens per layer by weight, `least` to `length` each, round(budget * L * length) in total."""
    layers = len(weights)
    total = max(layers, round(budget * layers * length))
    while least * layers > total:
        least -= 1
    real = filled(list(weights), [least] * layers, [length] * layers, total)
    counts = [math.floor(x + 1e-9) for x in real]
    order = sorted(range(layers), key=lambda n: (-(real[n] - counts[n]), -weights[n], n))
    for layer in order[: total - sum(counts)]:
        counts[layer] += 1
    return counts


def neighbours_largest(score, end, kernel):
    """SnapKV's max-pooling over the tokens before `end`."""
    half = kernel // 2
    pooled = score.copy()
    for j in range(end):
        pooled[j] = score[max(0, j - half) : min(end, j + half + 1)].max()
    return pooled


def neighbours_mean(score, end, kernel):
    """Pools by the mean, as kvpress does. Tokens outside count as zero."""
    half = kernel // 2
    pooled = score.copy()
    for j in range(end):
        pooled[j] = score[max(0, j - half) : min(end, j + half + 1)].sum() / kernel
    return pooled


def published_anchors(score):
    """Elastic Cache's published code: the rating of token i is the number in place i of argsort(scores)."""
    return [float(token) for token in sorted(range(len(score)), key=lambda n: (score[n], n))]


def spread_anchors(length, count):
    """Chooses `count` of `length` places so that of the first n about n * count / length are taken."""
    return [float((n + 1) * count // length - n * count // length) for n in range(length)]


def rows_after_the_picture(length, last_image, window):
    """VL-Cache's rows, or the last `window` if no token follows a picture."""
    if 0 <= last_image < length - 1:
        return range(last_image + 1, length)
    return range(max(0, length - window), length)


def text_grounded(attention, rows, kv_heads, image):
    """TGV-KV (arXiv 2606.03075): a row of the text weighs the mean attention that its own column receives.

    Returns the scores `[L, Hkv, T]`, the same for all heads, and the layers' weights: their attention to image tokens.
    """
    mean = attention[:, :, list(rows)].mean(axis=1)
    score = mean.sum(axis=1)
    shares = [1.0] * len(attention)
    if len(image):
        shares = score[:, image].sum(axis=1)
        weights = np.stack([mean[:, n:, row].mean(axis=1) for n, row in enumerate(rows)], axis=1)
        score[:, image] = np.einsum("lw,lwt->lt", weights, mean)[:, image]
    return shared(np.repeat(score[:, None], kv_heads, axis=1) * attention.shape[1] / kv_heads), list(shares)


def row_maxima(attention, kv_heads):
    """Returns the largest row of attention `[L, Hq, W, T]`, summed over each KV head's query heads: `[L, Hkv, T]`."""
    layers, heads, rows, length = attention.shape
    return attention.reshape(layers, kv_heads, heads // kv_heads, rows, length).sum(axis=2).max(axis=2)


def mixed_by_head(score, keys, values, end):
    """MixKV (arXiv 2510.20707): importance and diversity of the first `end` tokens of a head, mixed by redundancy."""
    directions = keys / np.maximum(np.linalg.norm(keys, axis=1, keepdims=True), 1e-12)
    cosines = directions @ directions.T
    count = len(keys)
    redundancy = (cosines.sum() - count) / max(1, count * (count - 1))

    def scaled(numbers):
        spread = (numbers - numbers.min()) / (numbers.max() - numbers.min() + 1e-8)
        return spread * score[:end].mean() / (spread.mean() + 1e-8)

    found = np.zeros(len(score))
    if end > 0:
        importance = score[:end] + scaled(np.linalg.norm(values[:end], axis=1))
        diversity = scaled(-cosines[:end].mean(axis=1))
        found[:end] = (1 - redundancy) * importance + redundancy * diversity
    return found


def kept(
    name,
    attention,
    kv_heads,
    last_image,
    budget,
    window=32,
    gamma=None,
    image=(),
    probes=None,
    keys=None,
    values=None,
):
    """Returns per layer the kept positions `[Hkv][count]`, ascending, and the scores `[L, Hkv, T]` that selected them.

    `gamma` are measured sparsities to use instead of those of this attention. `image` are the positions of image
    tokens. `probes` is the attention `[L, Hq, W, T]` of image tokens that run again behind the last picture. `keys`
    and `values` are `[L, Hkv, T, D]`.
    """
    layers, _, _, length = attention.shape
    text = set(range(length)) - set(image)
    claims = None
    floor = max(1, math.floor(0.01 * length + 0.5))
    equal = split([1.0] * layers, length, budget, floor)
    every, last = range(length), range(max(0, length - window), length)
    if name == "vl-cache":
        rows = rows_after_the_picture(length, last_image, window)
        score = column_sums(attention, rows, kv_heads)
        gamma = sparsity(attention, rows)[0] if gamma is None else np.array(gamma)
        counts = split(1 - gamma, length, budget, floor)
        always = [(0, round(0.1 * count)) for count in counts]
    elif name in ("elastic", "elastic-published", "elastic-spread"):
        score = shared(column_sums(attention, every, kv_heads))
        counts = equal
        always = [(1, min(1, count - 1)) for count in counts]
        if name != "elastic":
            score = score.copy()
            for layer, (count, (first, last_ones)) in enumerate(zip(counts, always, strict=True)):
                end = length - last_ones
                inner = score[layer, 0, first:end].tolist()
                if name == "elastic-published":
                    rating = published_anchors(inner)
                else:
                    rating = spread_anchors(len(inner), count - first - last_ones)
                score[layer, :, first:end] = rating
    elif name == "h2o":
        score = shared(column_sums(attention, every, kv_heads))
        counts = equal
        always = [(0, round(0.5 * count)) for count in counts]
    elif name in ("snapkv", "pyramidkv", "snapkv-mean", "mixkv"):
        pool, kernel = (neighbours_mean, 5) if name in ("snapkv-mean", "mixkv") else (neighbours_largest, 7)
        score = column_sums(attention, last, kv_heads)
        counts = equal
        if name == "pyramidkv":
            stay = min(window, length)
            counts = split(pyramid(layers, budget, 1 - stay / length), length, budget, max(floor, stay))
        always = [(0, min(window, length, count)) for count in counts]
        for layer, (_, recent) in enumerate(always):
            for head in range(kv_heads):
                score[layer, head] = pool(score[layer, head], length - recent, kernel)
                if name == "mixkv":
                    pair = keys[layer, head], values[layer, head]
                    score[layer, head] = mixed_by_head(score[layer, head], *pair, length - recent)
    elif name == "streaming-llm":
        score = np.zeros((layers, kv_heads, length))
        counts = equal
        always = [(min(4, count), count - min(4, count)) for count in counts]
    elif name in ("shared-question", "recall-question"):
        score = column_sums(attention, rows_after_the_picture(length, last_image, window), kv_heads)
        counts = equal
        always = [(1, min(round(0.1 * count), count - 1)) for count in counts]
        for layer, (_, recent) in enumerate(always):
            for head in range(kv_heads):
                score[layer, head] = neighbours_largest(score[layer, head], length - recent, 7)
        score = shared(score) if name == "shared-question" else score
        claims = [round(0.5 * count) for count in counts]
    elif name == "tgv-kv":
        rows = rows_after_the_picture(length, last_image, window)
        score, shares = text_grounded(attention, rows, kv_heads, sorted(image))
        counts = split(shares, length, budget, floor)
        always = [(min(4, count), min(1, count - min(4, count))) for count in counts]
        claims = counts
    elif name == "picture-once":
        rows = attention[:, :, list(last)] if probes is None else probes
        score = shared(row_maxima(rows, kv_heads))
        stay = len(last) if probes is None else length - last_image - 1
        counts = equal
        always = [(1, min(stay, count - 1)) for count in counts]
        claims = [round(0.5 * count) for count in counts]
    else:
        raise ValueError(name)
    if claims is None:
        claims = [0] * layers
    lists = [
        [text_first(head.tolist(), length, count, *ends, text, claim) for head in layer]
        for layer, count, ends, claim in zip(score, counts, always, claims, strict=True)
    ]
    return lists, score


def text_first(score, length, count, sinks, recent, text, claim):
    """Lists the kept positions: sinks and recent ones, text until `claim` is held, then any token, best first."""
    if count >= length:
        return list(range(length))
    kept = [j for j in range(length) if j < sinks or j >= length - recent]
    by_score = sorted(range(length), key=lambda j: (math.isnan(score[j]), -np.nan_to_num(score[j]), j))
    for j in by_score:
        if j in text and j not in kept and len(kept) < count and len(set(kept) & set(text)) < claim:
            kept.append(j)
    for j in by_score:
        if j not in kept and len(kept) < count:
            kept.append(j)
    return sorted(kept)


def shared(score):
    """Returns the same sum over heads for every head."""
    return np.broadcast_to(score.sum(axis=1, keepdims=True), score.shape)


def pyramid(layers, budget, most):
    """PyramidKV's shares: 1/20 of the average for the last layer, evenly rising to the first, so the average holds."""
    last = budget / 20
    first = 2 * budget - last
    if first > most:
        first = max(most, budget)
        last = 2 * budget - first
    return [first + (last - first) * layer / max(1, layers - 1) for layer in range(layers)]
