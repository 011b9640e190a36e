"""Keeps image tokens that are near the question's words, and differ from each other.

Source: CDPruner (arXiv 2506.10967): the most probable subset of a determinantal point process whose kernel is the
cosine similarity of features, times the relevance of both tokens; chosen greedily (arXiv 1709.05135). CDPruner measures
relevance with CLIP's text tower, which an engine does not have. Here it is the cosine of a token's feature, as the
language model receives it, and the embedding of the nearest word of the question. T tokens, k kept ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlkv.dtypes import Float32, Float64, Int64
from vlkv.errors import PolicyError
from vlkv.pruning.picture import Mask, Picture, unit_rows

NEIGHBOURS = 11
"""A token is as relevant as the most relevant of so many around it: an answer stands beside what names it."""
LEAST = 1e-9
"""Tokens whose gain is smaller add nothing; what is left of the share then goes to the most relevant."""


@dataclass(frozen=True)
class Relevant:
    """Keeps a share of the tokens that show a patch, rounded half up and at least one, and all that show none.

    Fields:
        share: the share to keep, in (0, 1].
    """

    share: float

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise PolicyError(
                f"prune relevant:{self.share:g} is outside (0, 1]; relevant:0.25 keeps a quarter of a picture"
            )

    def keep(self, picture: Picture) -> Mask:
        """See `Pruner.keep`."""
        shown = picture.shown
        kept = np.ones(len(picture.features), bool)
        if len(shown):
            kept[shown] = False
            count = max(1, int(self.share * len(shown) + 0.5))
            unit = unit_rows(picture.features[shown])
            kept[shown[most_probable(unit, relevance(unit, picture.question), count)]] = True
        return kept


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
        gain[chosen] = -np.inf
        chosen.append(best)
    left = np.setdiff1d(np.argsort(-weights, kind="stable"), chosen, assume_unique=True)
    return np.array([*chosen, *left[: count - len(chosen)]], np.int64)
