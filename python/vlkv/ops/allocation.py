"""The split of one prompt's budget over the layers: arithmetic on L numbers, on the host.

Source: VL-Cache (arXiv 2410.23317), the sparsity-aware layer budget.
"""

from __future__ import annotations

from numbers import Real
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlkv.dtypes import Float64
from vlkv.errors import OperatorError, PolicyError, quoted

Counts = NDArray[np.int64]


FLOOR = 0.01
"""The smallest share of a prompt that a layer keeps (VL-Cache, arXiv 2410.23317)."""


def check_share(budget: float) -> float:
    """Returns the budget as a float. Raises `PolicyError` outside (0, 1]."""
    if isinstance(budget, bool) or not isinstance(budget, Real) or not 0.0 < budget <= 1.0:
        raise PolicyError(
            f"budget {quoted(budget)} is outside (0, 1]; 0.1 keeps a tenth of the prompt's cache"
        )
    return float(budget)


def kept_of_all(layers: int, length: int, budget: float) -> int:
    """The tokens that a budget keeps of a prompt, summed over layers: the share, rounded, but one a layer at least."""
    return max(round(budget * layers * length), layers)


def allocate(
    sparsity: ArrayLike,
    length: int,
    budget: float,
    rule: Literal["exact", "paper"] = "exact",
    floor: float = FLOOR,
    ceiling: ArrayLike | None = None,
) -> Counts:
    """Returns the number of tokens that each layer keeps of a prompt of `length` tokens.

    Layers share in proportion to density, 1 - sparsity; equally if all densities are 0.

    `paper` is the published formula: the shares (1 - g_l) / sum(1 - g) * L * budget, clipped to [floor, 1], times the
    length, rounded half up. Clipping changes the total: it may be above or below the budget.

    `exact` computes x_l = clip(t * density_l, lower_l, upper_l) with the t for which the layers sum to
    round(budget * L * length), rounded to integers by largest remainders (ties: the denser, then the lower layer).
    upper_l is the smaller of the length and the ceiling; lower_l is floor * length, rounded half up. The constraints,
    in order of precedence: every layer keeps at least 1 token of a nonempty prompt; no layer exceeds its ceiling or the
    length, so the sum may be smaller; the total; the floor, which decreases equally for all layers if the total is too
    small for it.

    Args:
        sparsity: [L], each in [0, 1]: the share of attended weights that count as zero.
        length: the prompt's tokens; 0 gives zeros.
        budget: the share of the full cache to keep, in (0, 1].
        rule: `exact` or `paper`.
        floor: the smallest share of the prompt that a layer keeps, in [0, 1].
        ceiling: the most tokens that a layer keeps, at least 1: one number, or [L]. It applies under both rules.

    Returns:
        [L] int64.

    Raises:
        PolicyError: the budget, rule, floor, ceiling or a sparsity is outside its range or NaN.
        OperatorError: an array has another rank or size, or the length is negative.
    """
    share = check_share(budget)
    density = 1.0 - _sparsity(sparsity)
    layers = density.size
    if length < 0:
        raise OperatorError(f"[allocate] length {length} is negative; 0 is an empty prompt")
    if rule not in ("exact", "paper"):
        raise PolicyError(f"[allocate] unknown rule {rule!r}; known: exact, paper")
    if not 0.0 <= floor <= 1.0:
        raise PolicyError(f"[allocate] floor {floor} is outside [0, 1]; 0.01 keeps a hundredth of the prompt")
    upper = np.minimum(_ceiling(ceiling, layers), length)
    if length == 0 or layers == 0:
        return np.zeros(layers, np.int64)
    if not density.any():
        density = np.ones(layers)
    if rule == "paper":
        shares = np.clip(density / density.sum() * layers * share, floor, 1.0)
        return np.clip(_half_up(shares * length), 1, upper)
    total = min(kept_of_all(layers, length, share), int(upper.sum()))
    lower = _lower(upper, total, max(1, int(_half_up(np.float64(floor * length)))))
    return _whole(_fill(density, lower, upper, total), density, upper, total)


def _sparsity(sparsity: ArrayLike) -> Float64:
    values = np.asarray(sparsity, np.float64)
    if values.ndim != 1:
        raise OperatorError(f"[allocate] sparsity has shape {list(values.shape)}; one prompt's [L] is wanted")
    wrong = np.flatnonzero(~((values >= 0.0) & (values <= 1.0)))
    if wrong.size:
        layer = int(wrong[0])
        raise PolicyError(f"[allocate] sparsity of layer {layer} is {values[layer]}; it must lie in [0, 1]")
    return values


def _ceiling(ceiling: ArrayLike | None, layers: int) -> Counts:
    if ceiling is None:
        return np.full(layers, np.iinfo(np.int64).max)
    values = np.asarray(ceiling)
    if values.shape not in ((), (layers,)):
        raise OperatorError(
            f"[allocate] ceiling has shape {list(values.shape)}; one number or [{layers}] is wanted"
        )
    if values.dtype.kind not in "iu":
        raise OperatorError(
            f"[allocate] ceiling has dtype {values.dtype}; counts of tokens (integers) are wanted"
        )
    if (values < 1).any():
        raise PolicyError(
            f"[allocate] ceiling {int(values.min())} is under 1; a layer keeps at least one token"
        )
    return np.broadcast_to(values.astype(np.int64), (layers,))


def _half_up(values: Float64 | np.float64) -> Counts:
    return np.floor(np.asarray(values) + 0.5).astype(np.int64)


def _lower(upper: Counts, total: int, floor: int) -> Counts:
    """Lower the floor to the highest level that the total allows, under the ceilings."""
    low, high = 1, floor
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.minimum(upper, middle).sum()) <= total:
            low = middle
        else:
            high = middle - 1
    return np.minimum(upper, low)


def _fill(density: Float64, lower: Counts, upper: Counts, total: int) -> Float64:
    """Compute clip(t * density, lower, upper) with the t that makes the sum `total`, in sum(lower)..sum(upper).

    Layers of density 0 rise, equally, only when all others are full.
    """
    some = density > 0.0
    filled = lower.astype(np.float64)
    rest = total - int(lower[~some].sum())
    if rest <= int(upper[some].sum()):
        filled[some] = _level(density[some], lower[some], upper[some], rest)
        return filled
    filled[some] = upper[some]
    rest = total - int(upper[some].sum())
    filled[~some] = _level(np.ones(int((~some).sum())), lower[~some], upper[~some], rest)
    return filled


def _level(density: Float64, lower: Counts, upper: Counts, total: int) -> Float64:
    """`_fill` for densities above 0: the sum is piecewise linear in t, so t lies between two breakpoints."""
    bends = np.sort(np.concatenate([lower / density, upper / density]))
    sums = np.clip(bends[:, None] * density, lower, upper).sum(axis=1)
    after = int(np.searchsorted(sums, total))
    if after == 0:
        return lower.astype(np.float64)
    if after == bends.size:
        return upper.astype(np.float64)
    before = after - 1
    part = (total - sums[before]) / (sums[after] - sums[before])
    level = bends[before] + part * (bends[after] - bends[before])
    filled: Float64 = np.clip(level * density, lower, upper)
    return filled


def _whole(real: Float64, density: Float64, upper: Counts, total: int) -> Counts:
    """Round down, and add the rest of `total` to the largest remainders, under `upper`."""
    counts = np.floor(real).astype(np.int64)
    order = np.lexsort((np.arange(real.size), -density, counts - real))
    rest = total - int(counts.sum())
    while rest > 0:
        room = order[counts[order] < upper[order]][:rest]
        counts[room] += 1
        rest -= room.size
    return counts
