"""Text that stays before image tokens, as long as a part of a layer's budget holds it.

A selection by attention alone can drop a prompt's instructions where a picture draws the attention. TGV-KV (arXiv
2606.03075) keeps all text; here the part that text may claim is a field of the policy, so a long text leaves room for
the picture. C slots, Hkv key/value heads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlkv.policies.policy import Policy


def claimed(policy: Policy, count: int) -> int:
    """Of a layer's `count` kept tokens those that text claims before image tokens; 0 for none."""
    return min(count, max(round(policy.text * count), policy.text_tokens))


def text_first(
    scores: NDArray[np.float32],
    text: NDArray[np.bool_],
    between: tuple[int, int],
    free: int,
    claim: int,
    per_head: bool,
) -> NDArray[np.float32]:
    """Scores `[1, Hkv, C]` in which the best text tokens exceed every other token.

    Args:
        scores: the scores that select tokens; NaN ranks last. Returned as they are if text claims nothing.
        text: the slots `[C]` whose tokens lie outside pictures.
        between: the first slot that may be evicted, and the first one after it that is always kept.
        free: the number of tokens to keep between them.
        claim: how many text tokens stay before image tokens. Text that is always kept counts, and what exceeds the
            claim competes by score.
        per_head: whether each head selects separately, or by the sum over heads.
    """
    first, end = between
    room = min(free, claim - int(text[:first].sum()) - int(text[end:].sum()))
    places = first + np.flatnonzero(text[first:end])
    if room <= 0 or not len(places) or len(places) == end - first:
        return scores
    result = scores.copy()
    above = 1.0 + 2.0 * float(np.nan_to_num(scores).max(initial=0.0))
    if len(places) <= room:
        result[:, :, places] = above
        return result
    heads = scores[0][:, places].astype(np.float64)
    rated = heads if per_head else heads.sum(axis=0, keepdims=True)
    # a stable sort leaves ties to the lower slot
    best = np.argsort(np.nan_to_num(-rated, nan=np.inf), axis=1, kind="stable")[:, :room]
    for head in range(len(heads)):
        result[0, head, places[best[head if per_head else 0]]] = above
    return result
