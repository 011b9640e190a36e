"""Linear's harness: fresh inputs, and products with stored weights by definition in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vlkv.tune.harness import Argument, Harness, Sizes, Values
from vlkv.tune.operators.attend import normal
from vlkv.tune.operators.numbers import EPSILON, Array, codes_to_float, to_bfloat16, wide
from vlkv.tune.operators.shapes import FIXED, MOST_WEIGHT, Product, Shapes

FORMATS = {"float32": 0, "float16": 1, "bfloat16": 2}
SCALES = {"float32": 0, "float16": 1}
STORED = {"float32": "float32", "float16": "uint16", "bfloat16": "uint16", "codes": "uint8"}


def harness(shapes: Shapes) -> Harness:
    """Returns the harness of the engine's most frequent weight format.

    Timed are the two products with the most bytes, for one row (decode) and for 32 rows (prefill).
    """
    kind = shapes.products[0]
    same = [p for p in shapes.products if _format(p) == _format(kind)]

    def inputs(sizes: Sizes, rng: np.random.Generator) -> Values:
        rows, depth, columns = (sizes[n] for n in ("rows", "depth", "columns"))
        depth = max(depth, 1)
        data = normal(rng, rows, depth)
        if data.size and rng.random() < 0.2:
            data.reshape(-1)[rng.integers(data.size)] = rng.choice([np.nan, np.inf])
        made: Values = {
            "rows": rows,
            "depth": depth,
            "columns": columns,
            "format": {0: FORMATS.get(kind.dtype, 0), 8: 3, 4: 4}[kind.bits],
            "block": kind.block,
            "scale_type": SCALES[kind.scales] if kind.bits else 0,
            "precision": FIXED if kind.fixed else 0,
        }
        weights = _weights(kind, depth, columns, rng)
        around = int(rng.integers(0, 3)) if not sizes["plain"] else 0
        before = {
            "norm": normal(rng, depth if around == 1 else 0),
            "gated": normal(rng, rows, depth if around == 2 else 0),
            "residual": normal(rng, rows, columns if not sizes["plain"] and rng.random() < 0.5 else 0),
        }
        made |= {
            "zero_count": weights["zeros"].size,
            "minimum_count": weights["minimums"].size,
            "input": data,
            "epsilon": 1e-5,
            **weights,
        }
        made |= {f"{name}_count": value.size for name, value in before.items()} | before
        return made | {"bias": normal(rng, columns), "result": np.empty(rows * columns, np.float32)}

    def oracle(values: Values) -> Values:
        return {"result": product(kind, values)[0]}

    def tolerance(values: Values) -> Values:
        return {"result": product(kind, values)[1]}

    named: tuple[tuple[str, str], ...] = (
        ("rows", "int64"),
        ("depth", "int64"),
        ("columns", "int64"),
        ("format", "int32"),
    )
    named += (
        ("block", "int64"),
        ("scale_type", "int32"),
        ("precision", "int32"),
        ("zero_count", "int64"),
        ("minimum_count", "int64"),
    )
    named += (("norm_count", "int64"), ("gated_count", "int64"), ("residual_count", "int64"))
    named += (("epsilon", "float32"),)
    arguments = [Argument(name, dtype, "value") for name, dtype in named]
    scales = "uint16" if kind.bits and kind.scales == "float16" else "float32"
    buffers: tuple[tuple[str, str], ...] = (
        ("input", "float32"),
        ("weight", STORED[kind.dtype]),
        ("scales", scales),
        ("zeros", "uint8"),
    )
    buffers += (("minimums", "uint16"),)
    arguments += [Argument(name, dtype, "in") for name, dtype in buffers]
    arguments += [Argument(name, "float32", "in") for name in ("bias", "norm", "gated", "residual")]
    arguments.append(Argument("result", "float32", "out"))
    timed = [
        {
            "plain": 1,
            "rows": rows,
            "depth": p.depth,
            "columns": min(p.columns, int(MOST_WEIGHT / p.column_bytes)),
        }
        for p in same[:2]
        for rows in (1, 32)
    ]
    return Harness(
        path=Path(__file__),
        function="vlkv_tune_linear",
        arguments=tuple(arguments),
        returns=None,
        sizes={"rows": (0, 40), "depth": (1, 400), "columns": (1, 150), "plain": (0, 0)},
        held_out={"rows": (1, 70), "depth": (401, 1500), "columns": (151, 400), "plain": (0, 0)},
        timed=tuple(timed),
        inputs=inputs,
        oracle=oracle,
        tolerance=tolerance,
        description="Rows times a matrix whose weights are read in their stored format, plus a bias.",
    )


def _format(p: Product) -> tuple[object, ...]:
    return p.dtype, p.bits, p.block, p.scales, p.zeros, p.minimums


def _weights(kind: Product, depth: int, columns: int, rng: np.random.Generator) -> Values:
    """Random weights as the engine stores them; scales, zeros and minimums are empty for floats."""
    none = {
        "scales": np.zeros(0, np.float32),
        "zeros": np.zeros(0, np.uint8),
        "minimums": np.zeros(0, np.uint16),
    }
    if not kind.bits:
        data = normal(rng, columns, depth)
        if kind.dtype == "bfloat16":
            return {"weight": to_bfloat16(data), **none}
        return {
            "weight": data.astype(np.float16).view(np.uint16) if kind.dtype == "float16" else data,
            **none,
        }
    groups = -(-depth // kind.block)
    codes = rng.integers(0, 256, (columns, groups, kind.block * kind.bits // 8)).astype(np.uint8)
    scales = rng.uniform(0.5, 1.5, (columns, groups)).astype(kind.scales)
    zeros = rng.integers(0, 17, (columns, groups)).astype(np.uint8) if kind.zeros else none["zeros"]
    least = rng.uniform(-4.0, 0.0, (columns, groups)).astype(np.float16)
    return {
        "weight": codes,
        "scales": scales.view(np.uint16) if kind.scales == "float16" else scales,
        "zeros": zeros,
        "minimums": least.view(np.uint16) if kind.minimums else none["minimums"],
    }


def product(kind: Product, values: Values) -> tuple[Array, Array]:
    """Returns result and error bound, `[M * N]` both.

    A code times its scale is rounded once, its sum with a minimum once more; K products and the bias are summed, each
    rounded by half a unit. In fixed point the codes are summed and their zeros subtracted afterwards.
    """
    depth, weight = values["depth"], values["weight"]
    terms: Array = np.zeros(1)
    if kind.bits:
        scales = values["scales"].view(np.float16) if kind.scales == "float16" else values["scales"]
        origins = values["minimums"].view(np.float16) if kind.minimums else values["zeros"]
        matrix = codes_to_float(weight, scales, origins if origins.size else None, kind.bits, depth)
        if kind.minimums:  # the sum may be smaller than its terms
            terms = 2 * np.abs(np.repeat(origins.astype(np.float64), kind.block, axis=1)[:, :depth])
        elif kind.fixed:
            terms = (
                2 * 2 ** (kind.bits - 1) * np.repeat(scales.astype(np.float64), kind.block, axis=1)[:, :depth]
            )
            terms = terms if origins is None or not origins.size else 2 * terms
    elif kind.dtype == "float16":
        matrix = weight.view(np.float16).astype(np.float64)
    else:
        matrix = wide(weight)
    with np.errstate(all="ignore"):
        rows, error = multiplied(values)
        error = error + half_steps(rows) if kind.fixed else error
        result = rows @ matrix.T + values["bias"]
        size = np.abs(matrix) + terms
        magnitude = np.abs(rows) @ size.T + np.abs(values["bias"])
        if values["residual_count"]:
            result, magnitude = result + values["residual"], magnitude + np.abs(values["residual"])
        bound = (depth + 6) * EPSILON * magnitude + error @ np.abs(matrix).T + 2.0**-120
    return result.reshape(-1), np.where(np.isfinite(bound), bound, 0.0).reshape(-1)


def half_steps(rows: Array) -> Array:
    """What rows in fixed point may be off by, `[M, K]`: half a step of 1/32512 of the largest of 32, and roundings."""
    depth = rows.shape[-1]
    spans = np.pad(np.abs(rows), [(0, 0), (0, -depth % 32)]).reshape(len(rows), -(-depth // 32), 32)
    return np.repeat(spans.max(axis=-1) / 32512 * (0.5 + 3 * 32512 * EPSILON), 32, axis=-1)[:, :depth]


def multiplied(values: Values) -> tuple[Array, Array]:
    """Returns the rows that are multiplied, and their error bounds, `[M, K]` both.

    RMSNorm: the mean of squares has K roundings, of which the root halves the share; six more follow. SwiGLU: an
    exponent's rounding grows with its size; the exponential has two units, and six roundings follow.
    """
    rows = values["input"].astype(np.float64)
    if values["norm_count"]:
        mean = (rows**2).mean(axis=-1, keepdims=True) + float(np.float32(values["epsilon"]))
        made = rows / np.sqrt(mean) * values["norm"]
        return made, (rows.shape[-1] / 2 + 6) * EPSILON * np.abs(made)
    if values["gated_count"]:
        made = rows / (1 + np.exp(-rows)) * values["gated"]
        return made, (2 * np.abs(rows) + 10) * EPSILON * np.abs(made) + 2.0**-120 * np.abs(values["gated"])
    return rows, np.zeros(rows.shape)
