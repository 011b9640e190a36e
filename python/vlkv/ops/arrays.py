"""The operators on NumPy arrays: `score`, `allocate`, `evict`.

Dimensions: B prompts, W observed rows, C cache slots, Hq query heads, Hkv key/value heads, D head dimension, L layers.
There are two implementations with equal results: `native` (compiled, the default if it is installed) and `reference`,
the operators' ONNX bodies in ONNX Runtime. Arguments are checked here, once, before either runs.
Sources: VL-Cache (arXiv 2410.23317), Elastic Cache (arXiv 2407.18121).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlkv.errors import EngineError, OperatorError
from vlkv.ops import allocation, bodies
from vlkv.ops.constants import THRESHOLD
from vlkv.ops.native import native

__all__ = ["allocate", "evict", "score"]

Array = NDArray[Any]
Implementation = Literal["native", "reference"]
TINY, HUGE = (float(limit) for limit in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
DTYPES = ("float32", "float16", "bfloat16")


def score(
    query: Array,
    key: Array,
    row_position: ArrayLike,
    scale: float | None = None,
    threshold: float = THRESHOLD,
    *,
    implementation: Implementation | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sum the attention that each cache slot receives from the observed rows, and measure its sparsity.

    Row i of prompt b attends to slots 0..row_position[b, i]; -1 marks a padding row. Query head h reads KV
    head h // (Hq / Hkv). A = softmax(scale * query . key), in float32.

    Args:
        query: [B, Hq, W, D] float32, float16 or bfloat16 (ml_dtypes).
        key: [B, Hkv, C, D] of the same dtype.
        row_position: [B, W] integers in -1..C-1.
        scale: above 0; None is 1 / sqrt(D).
        threshold: in [0, 1]; a weight under `threshold` times its row's largest counts as zero.
        implementation: `native` or `reference`; None takes `native` if it is installed.

    Returns:
        score [B, Hkv, C] float32, A summed over the rows and over the query heads of each KV head; sparsity
        [B] float32, the share of attended (row, slot, query head) that counts as zero, 0 if nothing is attended.

    Raises:
        OperatorError: a rank, size, dtype or value is invalid, or the implementation is not available.
    """
    _check_floats("score", query=query, key=key)
    batch, heads, rows, dim = query.shape
    _, kv_heads, slots, _ = key.shape
    if (key.shape[0], key.shape[3]) != (batch, dim):
        _fail("score", f"query {_shape(query)} and key {_shape(key)} differ in B or D; they must share both")
    if heads % kv_heads:
        _fail(
            "score", f"{heads} query heads on {kv_heads} KV heads; the first must be a multiple of the second"
        )
    positions = _integers("score", "row_position", row_position, (batch, rows), "[B, W]")
    wrong = positions[(positions < -1) | (positions >= slots)]
    if wrong.size:
        _fail("score", f"row_position {wrong[0]} is outside -1..{slots - 1} (key has {slots} slots)")
    factor = 1.0 / math.sqrt(dim) if scale is None else float(scale)
    if not TINY <= factor <= HUGE:
        _fail("score", f"scale {scale} is outside {TINY:.2g}..{HUGE:.2g}; None is 1 / sqrt(D)")
    if not 0.0 <= threshold <= 1.0:
        _fail("score", f"threshold {threshold} is outside [0, 1]; 0.01 is the paper's")
    kernels = _native("score", implementation)
    total = np.zeros((batch, kv_heads, slots), np.float32)
    if not total.size or not rows:
        return total, np.zeros(batch, np.float32)
    if kernels is None:
        session = bodies.session("score", (("scale", factor), ("threshold", float(threshold))))
        feeds = {"query": _float32(query), "key": _float32(key), "row_position": positions}
        total, sparsity = session.run(["score", "sparsity"], feeds)
        return total, sparsity
    pairs, below = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
    kernels.score(_bits(query), _bits(key), positions, factor, float(threshold), total, pairs, below)
    return total, (below / np.maximum(pairs, 1)).astype(np.float32)


def allocate(
    sparsity: ArrayLike,
    length: int,
    budget: float,
    rule: Literal["exact", "paper"] = "exact",
    floor: float = allocation.FLOOR,
    ceiling: ArrayLike | None = None,
    *,
    implementation: Implementation | None = None,
) -> NDArray[np.int64]:
    """Split a budget over layers; see `vlkv.ops.allocation.allocate`.

    `implementation` is checked as in the other operators and has no effect.
    """
    _native("allocate", implementation)
    return allocation.allocate(sparsity, length, budget, rule, floor, ceiling)


def evict(
    key: Array,
    value: Array,
    score: Array,
    length: ArrayLike,
    keep: ArrayLike,
    sinks: ArrayLike = 0,
    recent: ArrayLike = 0,
    capacity: int | None = None,
    per_head: bool = True,
    merge: Literal["none", "nearest_mean"] = "none",
    *,
    implementation: Implementation | None = None,
) -> tuple[Array, Array, NDArray[np.int32]]:
    """Keep min(keep, length) slots of a cache, in ascending order, in a small cache.

    The first `sinks` and the last `recent` of the valid slots stay; the rest of `keep` goes to the highest
    scores, ties to the lower position, NaN after every number.

    Args:
        key: [B, Hkv, C, D] float32, float16 or bfloat16 (ml_dtypes).
        value: like key.
        score: [B, Hkv, C] float32.
        length: valid slots, 0..C; like the next three one integer, or [B].
        keep: slots to keep, at least 0; more than `length` keeps all.
        sinks: first slots that stay, at least 0.
        recent: last valid slots that stay, at least 0; with `sinks` at most `keep`.
        capacity: slots of the result; None is the largest min(keep, length).
        per_head: select for each KV head; else once, by the scores summed over heads.
        merge: `none` drops evicted slots; `nearest_mean` averages each into the nearest kept slot (tie: the lower),
            in float32, including the kept slot.
        implementation: `native` or `reference`; None takes `native` if it is installed.

    Returns:
        key, value [B, Hkv, capacity, D] of the given dtype, zero past the kept slots; position [B, Hkv, capacity]
        int32, the slot that each came from, -1 past the kept slots.

    Raises:
        OperatorError: a rank, size, dtype or value is invalid, or the implementation is not available.
    """
    _check_floats("evict", key=key, value=value)
    if value.shape != key.shape:
        _fail("evict", f"key {_shape(key)} and value {_shape(value)} differ; they must have one shape")
    batch, heads, slots, dim = key.shape
    if not isinstance(score, np.ndarray) or score.shape != key.shape[:3] or score.dtype != np.float32:
        given = f"{score.dtype} {_shape(score)}" if isinstance(score, np.ndarray) else type(score).__name__
        _fail("evict", f"score is {given}; float32 {_shape(key[..., 0])} is wanted, as of key")
    lengths, keeps, firsts, lasts = (
        _integers("evict", name, given, (batch,), "[B]")
        for name, given in (("length", length), ("keep", keep), ("sinks", sinks), ("recent", recent))
    )
    counts = {"length": lengths, "keep": keeps, "sinks": firsts, "recent": lasts}
    for name, numbers in counts.items():
        if (numbers < 0).any():
            _fail("evict", f"{name} {numbers.min()} is negative; 0 is the least")
    if (lengths > slots).any():
        _fail("evict", f"length {lengths.max()} is more than the {slots} slots of key")
    for first, last, kept in zip(firsts, lasts, keeps, strict=True):
        if first + last > kept:
            _fail("evict", f"sinks {first} + recent {last} is more than keep {kept}; keep at least their sum")
    needed = int(np.minimum(keeps, lengths).max(initial=0))
    room = needed if capacity is None else int(capacity)
    if room < needed:
        _fail(
            "evict",
            f"capacity {room} is less than the {needed} slots to keep; give at least {needed}, or None",
        )
    if merge not in ("none", "nearest_mean"):
        _fail("evict", f"unknown merge {merge!r}; known: none, nearest_mean")
    kernels = _native("evict", implementation)
    new_key, new_value = (np.zeros((batch, heads, room, dim), key.dtype) for _ in range(2))
    position = np.full((batch, heads, room), -1, np.int32)
    merging = merge == "nearest_mean"
    if not position.size or not slots:
        return new_key, new_value, position
    scores = np.ascontiguousarray(score)
    if kernels is not None:
        new = (_bits(new_key), _bits(new_value), position)
        old = (_bits(key), _bits(value))
        kernels.evict(*old, scores, *counts.values(), *new, bool(per_head), merging, True)
        return new_key, new_value, position
    feeds = {"key": _float32(key), "value": _float32(value), "score": scores, **counts}
    scalars = {"capacity": np.int64(room), "per_head": np.bool_(per_head), "merge": np.bool_(merging)}
    feeds |= {name: np.asarray(number) for name, number in scalars.items()}
    wide_key, wide_value, position = bodies.session("compress").run(
        ["new_key", "new_value", "position"], feeds
    )
    return wide_key.astype(key.dtype, copy=False), wide_value.astype(key.dtype, copy=False), position


def _fail(operator: str, text: str) -> NoReturn:
    raise OperatorError(f"[{operator}] {text}")


def _shape(array: Array) -> str:
    return str(list(array.shape))


def _check_floats(operator: str, **arrays: Array) -> None:
    """Check for rank 4, one known dtype, at least one head and one dimension."""
    for name, array in arrays.items():
        known = isinstance(array, np.ndarray) and array.dtype.name in DTYPES and array.dtype.isnative
        if not known:
            given = (
                f"dtype {array.dtype}" if isinstance(array, np.ndarray) else f"type {type(array).__name__}"
            )
            _fail(operator, f"{name} has {given}; a NumPy array of {', '.join(DTYPES)} is wanted")
        if array.ndim != 4:
            _fail(
                operator, f"{name} has shape {_shape(array)}; rank 4, [B, heads, rows or slots, D], is wanted"
            )
        if not array.shape[1] or not array.shape[3]:
            _fail(
                operator, f"{name} has shape {_shape(array)}; at least one head and one dimension are wanted"
            )
    (name, array), (other, second) = arrays.items()
    if array.dtype != second.dtype:
        _fail(operator, f"{name} is {array.dtype} and {other} is {second.dtype}; one dtype is wanted")


def _integers(
    operator: str, name: str, given: ArrayLike, shape: tuple[int, ...], text: str
) -> NDArray[np.int64]:
    """Convert the given integers to int64 of that shape; a single number stands for a whole [B]."""
    array = np.asarray(given)
    if array.dtype.kind not in "iu" and array.size:
        _fail(operator, f"{name} has dtype {array.dtype}; integers are wanted")
    if array.shape != shape and (len(shape) > 1 or array.shape != ()):
        one = "" if len(shape) > 1 else " or one number"
        _fail(operator, f"{name} has shape {_shape(array)}; {text} = {list(shape)}{one} is wanted")
    return np.ascontiguousarray(np.broadcast_to(array.astype(np.int64), shape))


def _float32(array: Array) -> Array:
    return np.ascontiguousarray(array, np.float32)


def _bits(array: Array) -> Array:
    """View an array as the native code reads it: dense last axis, bfloat16 as bits. Other axes may have any strides."""
    plain = array if array.strides[-1] == array.itemsize else np.ascontiguousarray(array)
    return plain.view(np.uint16) if array.dtype.name == "bfloat16" else plain


def _native(operator: str, implementation: str | None) -> Any:
    """Return the compiled module, or None for the reference."""
    if implementation not in (None, "native", "reference"):
        _fail(operator, f"unknown implementation {implementation!r}; known: native, reference")
    if implementation == "reference":
        return None
    try:
        return native()
    except EngineError:
        if implementation == "native":
            _fail(operator, "the native operators were not built; implementation='reference' works")
        return None
