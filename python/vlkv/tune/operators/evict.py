"""Evict's harness: fresh inputs, and the kept slots by definition."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from vlkv.tune.harness import Argument, Harness, Sizes, Values
from vlkv.tune.operators.attend import CACHE, normal
from vlkv.tune.operators.numbers import EPSILON, Array, stored
from vlkv.tune.operators.shapes import Shapes


def harness(shapes: Shapes) -> Harness:
    """Returns the harness; timed is one layer after a prompt, of which a tenth stays."""
    dtype = shapes.cache_dtype
    cache = "uint16" if dtype == "bfloat16" else "float32"

    def inputs(sizes: Sizes, rng: np.random.Generator) -> Values:
        batch, heads, slots, dim = (sizes[n] for n in ("batch", "kv_heads", "slots", "head_dim"))
        full = bool(sizes["full"])
        score = np.abs(normal(rng, batch, heads, slots))
        if not full:
            score = np.round(score * 4) / 4 if rng.random() < 0.5 else score  # ties
            if score.size and rng.random() < 0.5:
                score.reshape(-1)[rng.integers(0, score.size, 3)] = rng.choice([np.nan, np.inf, -np.inf])
        length = np.array([slots if full else rng.integers(0, slots + 1) for _ in range(batch)], np.int64)
        keep = np.array(
            [max(1, slots // 10) if full else rng.integers(0, slots + 2) for _ in range(batch)], np.int64
        )
        sinks = np.array([min(4, n) if full else rng.integers(0, n + 1) for n in keep], np.int64)
        recent = np.array(
            [(n - s) // 4 if full else rng.integers(0, n - s + 1) for n, s in zip(keep, sinks, strict=True)],
            np.int64,
        )
        capacity = int(np.minimum(keep, length).max(initial=0)) + (0 if full else int(rng.integers(0, 3)))
        merge = 0 if full or dtype == "bfloat16" else int(rng.integers(0, 2))
        out = batch * heads * capacity
        return {
            "batch": batch,
            "kv_heads": heads,
            "slots": slots,
            "head_dim": dim,
            "capacity": capacity,
            "type": CACHE[dtype],
            "per_head": 1 if full else int(rng.integers(0, 2)),
            "merge": merge,
            "key": stored(normal(rng, batch, heads, slots, dim), dtype),
            "value": stored(normal(rng, batch, heads, slots, dim), dtype),
            "score": score.astype(np.float32),
            "length": length,
            "keep": keep,
            "sinks": sinks,
            "recent": recent,
            "key_out": np.empty(out * dim, np.dtype(cache)),
            "value_out": np.empty(out * dim, np.dtype(cache)),
            "position_out": np.empty(out, np.int32),
        }

    named = ("batch", "kv_heads", "slots", "head_dim", "capacity")
    arguments = [Argument(name, "int64", "value") for name in named]
    arguments += [Argument(name, "int32", "value") for name in ("type", "per_head", "merge")]
    arguments += [Argument(name, cache, "in") for name in ("key", "value")]
    arguments.append(Argument("score", "float32", "in"))
    arguments += [Argument(name, "int64", "in") for name in ("length", "keep", "sinks", "recent")]
    arguments += [Argument(name, cache, "out") for name in ("key_out", "value_out")]
    arguments.append(Argument("position_out", "int32", "out"))
    small = {"batch": (0, 3), "kv_heads": (1, 4), "full": (0, 0)}
    timed = {"batch": 1, "kv_heads": shapes.kv_heads, "head_dim": shapes.head_dim, "full": 1}
    return Harness(
        path=Path(__file__),
        function="vlkv_tune_evict",
        arguments=tuple(arguments),
        returns=None,
        sizes=small | {"slots": (0, 200), "head_dim": (1, 70)},
        held_out=small | {"slots": (201, 700), "head_dim": (8, 130)},
        timed=(timed | {"slots": shapes.cache_slots[-1]},),
        inputs=inputs,
        oracle=lambda values: evicted(values)[0],
        tolerance=lambda values: evicted(values)[1],
        description="Keeps the slots of a cache with the highest scores, in order; merges the others if asked.",
    )


def evicted(values: Values) -> tuple[Values, Values]:
    """Returns the expected outputs, and the error bounds of merged rows: a float32 sum and a division round."""
    batch, heads, slots, dim, capacity = (
        values[n] for n in ("batch", "kv_heads", "slots", "head_dim", "capacity")
    )
    made = {n: np.zeros((batch, heads, capacity, dim), values["key"].dtype) for n in ("key", "value")}
    if values["merge"]:
        made = {n: np.zeros((batch, heads, capacity, dim)) for n in made}
    bound = {n: np.zeros((batch, heads, capacity, dim)) for n in made}
    position = np.full((batch, heads, capacity), -1, np.int32)
    for b, h in np.ndindex(batch, heads):
        rating = values["score"][b, h]
        if not values["per_head"]:  # in float32, in the order of heads: the order decides ties
            rating = np.zeros(slots, np.float32)
            with np.errstate(all="ignore"):
                for other in range(heads):
                    rating = rating + values["score"][b, other]
        length, keep, sinks, recent = (int(values[n][b]) for n in ("length", "keep", "sinks", "recent"))
        kept = selected(rating, length, keep, sinks, recent)
        position[b, h, : len(kept)] = kept
        for name, rows in made.items():
            source = values[name][b, h]
            rows[b, h, : len(kept)] = source[kept]
            if values["merge"] and len(kept):
                mean, error = merged(source.astype(np.float64), kept, length)
                rows[b, h, : len(kept)], bound[name][b, h, : len(kept)] = mean, error
    expected = {f"{name}_out": rows.reshape(-1) for name, rows in made.items()}
    bounds = {f"{name}_out": rows.reshape(-1) for name, rows in bound.items()} if values["merge"] else {}
    return expected | {"position_out": position.reshape(-1)}, bounds


def selected(score: Array, length: int, keep: int, sinks: int, recent: int) -> Array:
    """Returns the kept slots, ascending: the first, the last, then the highest scores; ties go to the lower slot."""
    if keep >= length:
        return np.arange(length)
    places = np.arange(length)
    always = (places < sinks) | (places >= length - recent)
    others = places[~always]
    rating = score[others].astype(np.float64)
    missing = np.isnan(rating)
    order = np.lexsort((others, -np.where(missing, 0.0, rating), missing))
    return np.sort(np.concatenate([places[always], others[order[: keep - int(always.sum())]]]))


def merged(rows: Array, kept: Array, length: int) -> tuple[Array, Array]:
    """Averages each kept row with the rows nearest to it (tie: the lower one); returns means and error bounds."""
    between = (kept[:-1] + kept[1:]) // 2 + 1
    ends = np.concatenate([[0], between, [length]])
    means, bounds = [], []
    for low, high in pairwise(ends):
        part = rows[low:high]
        means.append(part.mean(axis=0))
        bounds.append((high - low + 2) * EPSILON * np.abs(part).mean(axis=0) + 2.0**-126)
    return np.stack(means), np.stack(bounds)
