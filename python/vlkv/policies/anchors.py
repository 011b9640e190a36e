"""Which tokens of one selection for all heads stay: by their scores, or by places that scatter.

Sources: Elastic Cache (arXiv 2407.18121) and its published code, which compares the numbers in `argsort(scores)` where
the paper has ranks, so that its anchors lie almost evenly. `docs/notes/elastic-cache.md` has what either costs.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray


def rated(
    scores: NDArray[np.float32],
    kind: Literal["scores", "published", "spread"],
    between: tuple[int, int],
    count: int,
) -> NDArray[np.float32]:
    """Scores `[1, Hkv, C]` whose sum over heads is highest where tokens are to stay.

    Args:
        scores: what prompt rows gave each token.
        kind: `scores` returns them as they are. `published` gives token i the number in place i of `argsort(scores)`,
            both counted from the first token that may go; ties by place. `spread` gives 1 to `count` of them, evenly.
        between: the first token that may go, and the first after it that always stays.
        count: how many of those between stay.
    """
    if kind == "scores":
        return scores
    first, end = between
    result = np.zeros_like(scores)
    if kind == "published":
        total = scores[0, :, first:end].astype(np.float64).sum(axis=0)
        result[0, 0, first:end] = np.argsort(total, kind="stable")
    else:
        steps = np.arange(end - first + 1, dtype=np.int64) * count // max(1, end - first)
        result[0, 0, first:end] = np.diff(steps)
    return result
