"""Score by its definition, one row of one head at a time, in float64."""

import math

import numpy as np


def score(query, key, row_position, scale, threshold):
    """Sums the attention. Returns score [B, Hkv, C], pairs [B] and below [B].

    query [B, Hq, W, D], key [B, Hkv, C, D], row_position [B, W].

    Row i of prompt b attends to keys 0..row_position[b, i]; -1 is a padding row. Query head h reads KV head h // (Hq /
    Hkv). pairs counts the attended (row, key, head). below counts those with A < threshold * max of the row's A. The
    sparsity is below / pairs, or 0 without pairs.
    """
    batch, query_heads, rows, _ = query.shape
    kv_heads, slots = key.shape[1], key.shape[2]
    query = query.astype(np.float64)
    key = key.astype(np.float64)
    total = np.zeros((batch, kv_heads, slots))
    pairs = np.zeros(batch, np.int64)
    below = np.zeros(batch, np.int64)
    for b in range(batch):
        for h in range(query_heads):
            kv_head = h // (query_heads // kv_heads)
            for i in range(rows):
                keys = int(row_position[b, i]) + 1
                if keys == 0:
                    continue
                logits = np.array([scale * float(query[b, h, i] @ key[b, kv_head, j]) for j in range(keys)])
                weights = np.exp(logits - logits.max())
                attention = weights / math.fsum(weights)
                total[b, kv_head, :keys] += attention
                pairs[b] += keys
                below[b] += int((attention < threshold * attention.max()).sum())
    return total, pairs, below


def near(query, key, row_position, scale, threshold, distance):
    """Counts per prompt [B] the attended logits within `distance` of their row's threshold, max + ln p."""
    count = np.zeros(query.shape[0], np.int64)
    query = query.astype(np.float64)
    key = key.astype(np.float64)
    group = query.shape[1] // key.shape[1]
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for i in range(query.shape[2]):
                keys = int(row_position[b, i]) + 1
                if keys > 0:
                    logits = scale * (key[b, h // group, :keys] @ query[b, h, i])
                    count[b] += int((np.abs(logits - (logits.max() + math.log(threshold))) <= distance).sum())
    return count
