"""The choice of anchor tokens, for a selection that all heads share: by score, or spread over the prompt.

Sources: Elastic Cache (arXiv 2407.18121) and its published code, which compares the numbers in `argsort(scores)`
instead of ranks as in the paper, so its anchors are spread almost evenly. `docs/notes/elastic-cache.md` compares them.
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
    """Scores `[1, Hkv, C]` whose sum over heads is highest for the tokens to keep.

    Args:
        scores: the attention that each token received from prompt rows.
        kind: `scores` returns them unchanged. `published` gives token i the i-th number of `argsort(scores)`, both
            counted from the first token that may be evicted; ties by index. `spread` gives 1 to `count` evenly spaced
            tokens.
        between: the first token that may be evicted, and the first token after it that is always kept.
        count: the number of tokens to keep between them.
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
