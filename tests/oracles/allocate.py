"""Allocation by its definitions, in exact fractions."""

import math
from fractions import Fraction


def paper(sparsity, length, budget, floor):
    """VL-Cache as published: (1 - g_l) / sum(1 - g) * L * alpha, clipped to [floor, 1], times the length.

    The result is rounded half up, with at least one token per layer. Shares are equal if every layer is fully sparse.
    """
    dense = [1 - Fraction(float(g)) for g in sparsity]
    if not sum(dense):
        dense = [Fraction(1)] * len(dense)
    shares = [d / sum(dense) * len(dense) * Fraction(budget) for d in dense]
    clipped = [min(max(share, Fraction(floor)), Fraction(1)) for share in shares]
    return [max(1, math.floor(share * length + Fraction(1, 2))) for share in clipped]


def filled(dense, lower, upper, total):
    """Water-filling in real numbers: x_l = clip(t * dense_l, lower_l, upper_l), with t chosen to meet the total.

    Bisects t in 80 halvings. All dense > 0 and sum(lower) <= total <= sum(upper).
    """
    low, high = Fraction(0), max(Fraction(u) / Fraction(d) for d, u in zip(dense, upper, strict=True))

    def at(t):
        return [min(max(t * Fraction(d), lo), up) for d, lo, up in zip(dense, lower, upper, strict=True)]

    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle)) < total else (low, middle)
    return [float(x) for x in at(high)]
