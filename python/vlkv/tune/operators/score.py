"""Score's harness: fresh inputs, and the attention that each key receives by its definition in float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from vlkv.tune.harness import Argument, Harness, Sizes, Values
from vlkv.tune.operators.attend import CACHE, normal
from vlkv.tune.operators.numbers import EPSILON, Array, stored, wide
from vlkv.tune.operators.shapes import Shapes

THRESHOLD = float(np.float32(0.01))


def harness(shapes: Shapes) -> Harness:
    """Returns the harness; timed are an observation window after a prompt, and one row."""
    dtype = shapes.cache_dtype

    def inputs(sizes: Sizes, rng: np.random.Generator) -> Values:
        batch, rows, heads, slots, dim = (
            sizes[n] for n in ("batch", "rows", "kv_heads", "slots", "head_dim")
        )
        query_heads = heads * sizes["group"]
        query = normal(rng, batch, query_heads, rows, dim)
        if query.size and rng.random() < 0.25:
            query.reshape(-1)[rng.integers(query.size)] = rng.choice([np.nan, np.inf])
        last = np.arange(slots - rows, slots)[None, :].repeat(batch, 0)
        if not sizes["full"]:
            last = rng.integers(-1, slots, (batch, rows))
        return {
            "batch": batch,
            "query_heads": query_heads,
            "kv_heads": heads,
            "rows": rows,
            "slots": slots,
            "head_dim": dim,
            "type": CACHE[dtype],
            "query": query,
            "key": stored(normal(rng, batch, heads, slots, dim), dtype),
            "row_position": last.astype(np.int64),
            "score": np.empty(batch * heads * slots, np.float32),
            "pairs": np.empty(batch, np.int64),
            "below": np.empty(batch, np.int64),
        }

    def oracle(values: Values) -> Values:
        score, pairs, below, _, _ = observed(values)
        return {"score": score.reshape(-1), "pairs": pairs, "below": below}

    def tolerance(values: Values) -> Values:
        _, _, _, bound, near = observed(values)
        return {"score": bound.reshape(-1), "below": near}

    named = ("batch", "query_heads", "kv_heads", "rows", "slots", "head_dim")
    arguments = [Argument(name, "int64", "value") for name in named]
    arguments += [Argument("type", "int32", "value"), Argument("query", "float32", "in")]
    arguments.append(Argument("key", "uint16" if dtype == "bfloat16" else "float32", "in"))
    arguments += [Argument("row_position", "int64", "in"), Argument("score", "float32", "out")]
    arguments += [Argument(name, "int64", "out") for name in ("pairs", "below")]
    timed = {
        "batch": 1,
        "kv_heads": shapes.kv_heads,
        "group": shapes.query_heads // shapes.kv_heads,
        "head_dim": shapes.head_dim,
        "full": 1,
    }
    small = {"batch": (0, 3), "kv_heads": (1, 3), "group": (1, 8), "full": (0, 0)}
    return Harness(
        path=Path(__file__),
        function="vlkv_tune_score",
        arguments=tuple(arguments),
        returns=None,
        sizes=small | {"rows": (0, 40), "slots": (0, 300), "head_dim": (1, 130)},
        held_out=small | {"rows": (41, 90), "slots": (301, 900), "head_dim": (16, 256)},
        timed=tuple(timed | {"slots": shapes.cache_slots[-1], "rows": rows} for rows in (32, 1)),
        inputs=inputs,
        oracle=oracle,
        tolerance=tolerance,
        description="The attention that each key of a cache receives from observed rows.",
    )


def observed(values: Values) -> tuple[Array, Array, Array, Array, Array]:
    """Returns score `[B, Hkv, C]`, pairs and below `[B]`, the score's error bound, and how many are at the threshold.

    A logit errs as Attend's says; below counts weights whose logit lies within that error of the threshold either way.
    """
    query, key = values["query"].astype(np.float64), wide(values["key"])
    batch, heads, slots = values["batch"], values["kv_heads"], values["slots"]
    group, dim = values["query_heads"] // heads, values["head_dim"]
    scale, distance = dim**-0.5, math.log(THRESHOLD)
    score, bound = np.zeros((batch, heads, slots)), np.full((batch, heads, slots), 2.0**-100)
    pairs, below, near = (np.zeros(batch, np.int64) for _ in range(3))
    for b, h, i in np.ndindex(query.shape[:3]):
        count = int(values["row_position"][b, i]) + 1
        if not count:
            continue
        seen = key[b, h // group, :count]
        with np.errstate(all="ignore"):
            logits = scale * (seen @ query[b, h, i])
        if np.isnan(logits).any() or np.isposinf(logits).any() or np.isneginf(logits).all():
            continue
        size = scale * (np.abs(seen) @ np.abs(query[b, h, i]))
        error = (dim + 8) * EPSILON * float(size.max()) + 32 * EPSILON
        weights = np.exp(logits - logits.max())
        attention = weights / weights.sum()
        score[b, h // group, :count] += attention
        bound[b, h // group, :count] += attention * (3 * error + (slots + 64) * EPSILON)
        pairs[b] += count
        apart = logits - (logits.max() + distance)
        below[b] += int((apart < 0).sum())
        near[b] += int((np.abs(apart) <= 2 * error).sum())
    bound += EPSILON * values["rows"] * group * score
    return score, pairs, below, bound, near
