"""Keeps image tokens that are near the question's words, and differ from each other.

Source: CDPruner (arXiv 2506.10967): the most probable subset of a determinantal point process whose kernel is the
cosine similarity of features, times the relevance of both tokens; chosen greedily (arXiv 1709.05135). CDPruner measures
relevance with CLIP's text tower, which an engine does not have. Here it is the cosine of a token's feature, as the
language model receives it, and the embedding of the nearest word of the question. T tokens, k kept ones.
"""

from __future__ import annotations

import numpy as np

from vlkv.dtypes import Float32, Float64, Int64
from vlkv.pruning.picture import Picture, unit_rows
from vlkv.pruning.share import Share

NEIGHBOURS = 11
"""A token is as relevant as the most relevant of so many around it: an answer stands beside what names it."""
LEAST = 1e-9
"""Tokens whose gain is smaller add nothing; what is left of the share then goes to the most relevant."""


class Relevant(Share):
    """Keeps the share that is nearest to the question's words, and differs most."""

    name = "relevant"

    def choose(self, picture: Picture, count: int) -> Int64:
        """See `Share.choose`."""
        unit = unit_rows(picture.features[picture.shown])
        return most_probable(unit, relevance(unit, picture.question), count)


def relevance(unit: Float32, question: Float32) -> Float64:
    """How near each row `[T, hidden]` is to a word of the question `[Q, hidden]`, from 0 to 1; 1 without a question."""
    if not len(question) or not len(unit):
        return np.ones(len(unit))
    nearest = (unit @ unit_rows(question).T).max(axis=1).astype(np.float64)
    wide = np.pad(nearest, NEIGHBOURS // 2, constant_values=-np.inf)
    around: Float64 = np.lib.stride_tricks.sliding_window_view(wide, NEIGHBOURS).max(axis=1)
    least, most = float(around.min()), float(around.max())
    return (around - least) / (most - least) if most > least else np.ones(len(unit))


def most_probable(unit: Float32, weights: Float64, count: int) -> Int64:
    """The numbers of `count` rows `[T, hidden]` of length 1 or 0, in the order of their choice.

    A choice multiplies the determinant of the chosen rows' kernel by its gain, and is the row of the largest gain;
    ties go to the earlier row. Gains are updated with one more row of the kernel's Cholesky factor a choice.
    """
    rows = unit.astype(np.float64)
    gain = weights**2
    factor = np.empty((count, len(rows)))
    chosen: list[int] = []
    while len(chosen) < count:
        best = int(gain.argmax())
        if gain[best] < LEAST:
            break
        known = factor[: len(chosen)]
        similar = weights * weights[best] * (rows @ rows[best]) - known[:, best] @ known
        factor[len(chosen)] = similar / np.sqrt(gain[best])
        gain -= factor[len(chosen)] ** 2
        gain[best] = -np.inf
        chosen.append(best)
    left = np.setdiff1d(np.argsort(-weights, kind="stable"), chosen, assume_unique=True)
    return np.array([*chosen, *left[: count - len(chosen)]], np.int64)
