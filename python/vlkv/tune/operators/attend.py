"""Attend's harness: fresh inputs, and the attention by its definition in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vlkv.tune.harness import Argument, Harness, Sizes, Values
from vlkv.tune.operators.numbers import EPSILON, Array, stored, wide
from vlkv.tune.operators.shapes import Shapes

CACHE = {"float32": 0, "bfloat16": 2}


def harness(shapes: Shapes) -> Harness:
    """Returns the harness; timed are one new token after a short and a long cache of the engine's shapes."""
    dtype = shapes.cache_dtype
    cache = "uint16" if dtype == "bfloat16" else "float32"

    def inputs(sizes: Sizes, rng: np.random.Generator) -> Values:
        batch, rows, heads, slots, dim = (
            sizes[n] for n in ("batch", "rows", "kv_heads", "slots", "head_dim")
        )
        rows = min(rows, slots)
        query_heads = heads * sizes["group"]
        most = slots - rows
        full = sizes.get("full", 0)
        first = np.array([most if full else rng.integers(0, most + 1) for _ in range(batch)], np.int32)
        count = np.array([rows if full else rng.integers(min(rows, 1), rows + 1) for _ in range(batch)])
        query = normal(rng, batch, rows, query_heads, dim)
        if rows == 1 and query.size and rng.random() < 0.2:
            query.reshape(-1)[rng.integers(query.size)] = rng.choice([np.nan, np.inf])
        return {
            "batch": batch,
            "rows": rows,
            "query_heads": query_heads,
            "kv_heads": heads,
            "slots": slots,
            "head_dim": dim,
            "cache": CACHE[dtype],
            "query": query,
            "key": normal(rng, batch, rows, heads, dim),
            "value": normal(rng, batch, rows, heads, dim),
            "key_cache": stored(normal(rng, batch, heads, slots, dim), dtype),
            "value_cache": stored(normal(rng, batch, heads, slots, dim), dtype),
            "first": first,
            "last": (first + np.maximum(count, 1) - 1).astype(np.int32),
            "result": np.empty(query.size, np.float32),
        }

    def oracle(values: Values) -> Values:
        keys, means = _after(values, dtype)
        result, _ = attention(values, keys, means)
        return {"key_cache": keys.reshape(-1), "value_cache": means.reshape(-1), "result": result.reshape(-1)}

    def tolerance(values: Values) -> Values:
        return {"result": attention(values, *_after(values, dtype))[1].reshape(-1)}

    named = ("batch", "rows", "query_heads", "kv_heads", "slots", "head_dim")
    arguments = [Argument(name, "int64", "value") for name in named]
    arguments.append(Argument("cache", "int32", "value"))
    arguments += [Argument(name, "float32", "in") for name in ("query", "key", "value")]
    arguments += [Argument(name, cache, "inout") for name in ("key_cache", "value_cache")]
    arguments += [Argument(name, "int32", "in") for name in ("first", "last")]
    arguments.append(Argument("result", "float32", "out"))
    timed = {
        "batch": 1,
        "rows": 1,
        "kv_heads": shapes.kv_heads,
        "group": shapes.query_heads // shapes.kv_heads,
        "head_dim": shapes.head_dim,
        "full": 1,
    }
    return Harness(
        path=Path(__file__),
        function="vlkv_tune_attend",
        arguments=tuple(arguments),
        returns=None,
        sizes={
            "batch": (0, 3),
            "rows": (0, 6),
            "kv_heads": (1, 3),
            "group": (1, 8),
            "slots": (1, 300),
            "head_dim": (1, 130),
            "full": (0, 0),
        },
        held_out={
            "batch": (1, 2),
            "rows": (1, 40),
            "kv_heads": (1, 4),
            "group": (1, 9),
            "slots": (301, 1300),
            "head_dim": (16, 256),
            "full": (0, 0),
        },
        timed=tuple(timed | {"slots": slots} for slots in shapes.cache_slots),
        inputs=inputs,
        oracle=oracle,
        tolerance=tolerance,
        description="Attention of new tokens over a KV cache, which takes their keys and values first.",
        repeatable=True,
    )


def normal(rng: np.random.Generator, *shape: int) -> Array:
    """Returns standard normal numbers in float32."""
    return rng.standard_normal(shape, np.float32)


def _after(values: Values, dtype: str) -> tuple[Array, Array]:
    """The caches after the call, as they are stored."""
    made = []
    for name in ("key", "value"):
        cache, fresh = values[f"{name}_cache"].copy(), values[name]
        for b in range(values["batch"] if values["rows"] else 0):
            first, last = int(values["first"][b]), int(values["last"][b])
            new = stored(fresh[b, : last + 1 - first], dtype)
            cache[b, :, first : last + 1] = new.transpose(1, 0, 2)
        made.append(cache)
    return made[0], made[1]


def attention(values: Values, keys: Array, means: Array) -> tuple[Array, Array]:
    """Returns result and its error bound, `[B, S, Hq, D]` both in float64. A token's own row is not rounded.

    A logit sums D products, each rounded to half a unit of float32, so it errs by D half units of the sum of the
    products' magnitudes; a weight errs by its logit's error, as a share; a sum of C weighted values adds C half units.
    """
    query, *own = (values[name].astype(np.float64) for name in ("query", "key", "value"))
    group = values["query_heads"] // values["kv_heads"]
    dim = values["head_dim"]
    scale = dim**-0.5
    result, bound = np.zeros(query.shape), np.zeros(query.shape)
    for b, i, h in np.ndindex(query.shape[:3]):
        slots = int(values["first"][b]) + i + 1
        if slots > int(values["last"][b]) + 1:
            continue
        seen, mean = wide(keys[b, h // group, :slots]), wide(means[b, h // group, :slots])
        seen[-1], mean[-1] = (rows[b, i, h // group] for rows in own)
        logits = scale * (seen @ query[b, i, h])
        if np.isnan(logits).any() or np.isposinf(logits).any() or np.isneginf(logits).all():
            result[b, i, h] = np.nan
            continue
        weights = np.exp(logits - logits.max())
        weights /= weights.sum()
        result[b, i, h] = weights @ mean
        size = scale * (np.abs(seen) @ np.abs(query[b, i, h]))
        share = 2 * (dim + 8) * EPSILON * float(size.max()) + (slots + 64) * EPSILON
        bound[b, i, h] = share * (weights @ np.abs(mean)) + 2.0**-126
    return result, bound


def sizes_of(values: dict[str, Any], *names: str) -> tuple[int, ...]:
    """Returns numbers among the arguments."""
    return tuple(int(values[name]) for name in names)
