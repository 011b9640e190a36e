"""The oracles of tests/oracles in float64 on a device, for sizes that would take those hours."""

import math

import torch

EPS = float(torch.finfo(torch.float32).eps)
LOGITS_AT_ONCE = 1 << 26


def score(query, key, row_position, scale, threshold):
    """Returns score [B, Hkv, C], pairs, below at least, below at most [B], and a score's relative tolerance, a number.

    A float32 logit is off by (D + 3) eps of the sum of its products' magnitudes: D additions, each to within one unit
    in the last place (matrix units truncate where others round), the scale and log2(e). Pairs within twice that of
    their row's threshold may therefore count either way. A weight is the exponential of a logit less the maximum. Its
    relative error is 2 error, which the softmax's sum doubles, plus 2^-22 for the exponential. Float32 sums of positive
    terms add one eps for each row.
    """
    batch, query_heads, rows, dim = query.shape
    kv_heads, slots = key.shape[1:3]
    total = torch.zeros(batch, kv_heads, slots, dtype=torch.float64, device=key.device)
    pairs, low, high = (torch.zeros(batch, dtype=torch.int64, device=key.device) for _ in range(3))
    slot = torch.arange(slots, device=key.device)
    worst = 0.0
    for b in range(batch):
        for h in range(query_heads):
            keys = key[b, h * kv_heads // query_heads].double()
            for part in torch.arange(rows, device=key.device).split(max(LOGITS_AT_ONCE // max(slots, 1), 1)):
                last = row_position[b, part]
                part, last = part[last >= 0], last[last >= 0]
                if len(part) == 0 or slots == 0:
                    continue
                rows_here = query[b, h, part].double()
                attended = slot <= last[:, None]
                logits = (scale * (rows_here @ keys.T)).masked_fill(~attended, -math.inf)
                bounds = (dim + 3) * EPS * scale * (rows_here.abs() @ keys.abs().T)
                error = bounds.masked_fill(~attended, 0).amax(1, keepdim=True)
                maximum = logits.amax(1, keepdim=True)
                total[b, h * kv_heads // query_heads] += torch.softmax(logits, 1).sum(0)
                pairs[b] += attended.sum()
                limit = maximum + math.log(threshold)
                low[b] += (attended & (logits < limit - 2 * error - 1e-6)).sum()
                high[b] += (attended & (logits < limit + 2 * error + 1e-6)).sum()
                worst = max(worst, float(error.max()))
    tolerance = 2 * math.expm1(2 * worst) + EPS * (rows * query_heads // kv_heads + slots / 64 + 112)
    return total, pairs, low, high, tolerance


def select(rating, length, keep, sinks, recent):
    """Lists the kept slots of one selection, ascending."""
    slots = torch.arange(length, device=rating.device)
    if keep >= length:
        return slots
    middle = slots[sinks : length - recent]
    values = rating[middle]
    # Stable: by value first, then NaN behind every number.
    order = torch.sort(
        values.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf), descending=True, stable=True
    )
    order = order.indices[torch.sort(values[order.indices].isnan().int(), stable=True).indices]
    best = middle[order[: keep - sinks - recent]]
    return torch.cat([slots[:sinks], best, slots[length - recent :]]).sort().values


def evict(key, value, score, counts, capacity, per_head, merge):
    """Returns key, value [B, Hkv, capacity, D] in float64, position [B, Hkv, capacity], and the tokens of each slot.

    A slot has at least one token.
    """
    batch, heads, _, dim = key.shape
    position = torch.full((batch, heads, capacity), -1, dtype=torch.int32, device=key.device)
    merged = torch.ones(batch, heads, capacity, dtype=torch.int64, device=key.device)
    out = [torch.zeros(batch, heads, capacity, dim, dtype=torch.float64, device=key.device) for _ in range(2)]
    for b in range(batch):
        length, keep, sinks, recent = (int(c[b]) for c in counts)
        shared = score[b, 0].clone()
        for h in range(1, heads):
            shared += score[b, h]
        for h in range(heads):
            kept = select(score[b, h] if per_head else shared, length, keep, sinks, recent)
            position[b, h, : len(kept)] = kept
            if len(kept) == 0:
                continue
            # The bucket of a token: the number of midpoints below it.
            nearest = torch.searchsorted((kept[:-1] + kept[1:]) // 2, torch.arange(length, device=key.device))
            count = torch.bincount(nearest, minlength=len(kept))
            for old, new in zip((key, value), out, strict=True):
                if merge:
                    sums = torch.zeros(len(kept), dim, dtype=torch.float64, device=key.device)
                    sums.index_add_(0, nearest, old[b, h, :length].double())
                    new[b, h, : len(kept)] = sums / count[:, None]
                else:
                    new[b, h, : len(kept)] = old[b, h, kept].double()
            if merge:
                merged[b, h, : len(kept)] = count
    return *out, position, merged


def attend(query, key_cache, value_cache, length, count, scale, dtype):
    """Returns result [B, Hq, S, D] float64, its tolerance by element, and the caches after the call.

    A logit of 16-bit products is off by (D + 3) eps of its products' magnitudes. A weight is off by twice that error,
    2^-20 for exp2 and the roundings of the sums, and its own rounding to 16 bits. The result is rounded to 16 bits once
    more. In float16 a weight below 2^-14 has an absolute error of 2^-25.
    """
    narrow, least = (2.0**-11, 2.0**-25) if dtype == torch.float16 else (2.0**-8, 0.0)
    group = query.shape[1] // key_cache.shape[1]
    result, tolerance = torch.zeros(2, *query.shape, dtype=torch.float64, device=query.device)
    for b in range(query.shape[0]):
        rows = int(count[b])
        reached = int(length[b]) + rows
        slot = torch.arange(reached, device=query.device)
        masked = slot[None] > slot[reached - rows :, None]
        for head in range(query.shape[1] if rows else 0):
            q = query[b, head, :rows].double()
            k, v = (c[b, head // group, :reached].double() for c in (key_cache, value_cache))
            logits = (scale * q @ k.T).masked_fill(masked, -math.inf)
            largest = scale * (q.abs() @ k.abs().T).masked_fill(masked, 0).amax(1, keepdim=True)
            top = logits.amax(1, keepdim=True)
            sums = (logits - top).exp().sum(1, keepdim=True)
            weights = (logits - top).exp() / sums
            error = 2 * torch.expm1(2 * (query.shape[-1] + 3) * EPS * largest) + 2.0**-20 + 2 * reached * EPS
            result[b, head, :rows] = weights @ v
            tolerance[b, head, :rows] = (
                (error + narrow) * (weights @ v.abs())
                + narrow * result[b, head, :rows].abs()
                + least * (~masked).double() @ v.abs() / sums
                + 2.0**-24
            )
    return result, tolerance


def draw(logits, temperature, top_k, top_p, uniform):
    """Returns the first and the last token that may be drawn from logits [V], whose sums are within 2^-27 of the edges.

    A weight is off by 2^-28, and so are its sums.
    """
    best = logits.argmax()
    if not temperature > 0 or not torch.isfinite(logits).any() or not math.isfinite(logits[best]):
        return int(best), int(best)
    weight = ((logits.double() - logits[best].double()) / temperature).exp()
    ranked = logits.sort(stable=True).indices  # from the least likely on, equal logits by id
    if 1 <= top_k < len(logits):
        ranked = ranked[logits[ranked] >= logits.topk(int(top_k)).values[-1]]
    if top_p < 1:
        sums = weight[ranked].cumsum(0)
        ranked = ranked[min(int((sums <= (1 - top_p) * sums[-1]).sum()), len(ranked) - 1) :]
    ids = ranked.sort().values
    sums = weight[ids].cumsum(0)
    places = [(sums <= (uniform + slack) * sums[-1]).sum() for slack in (-(2.0**-27), 2.0**-27)]
    return tuple(int(ids[min(int(place), len(ids) - 1)]) for place in places)
