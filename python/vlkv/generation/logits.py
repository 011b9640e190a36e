"""Penalties on the tokens of an answer, and log probabilities of chosen tokens.

Source of the penalties: OpenAI's API reference ("Frequency and presence penalties").
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural logarithm of a chosen token's probability, and those of the most likely tokens, in order."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def logprobs(logits: NDArray[np.floating], token: int, top: int) -> TokenLogprob:
    """Log probabilities from unmodified logits `[V]`; `top` is the number of alternatives to return."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    if not top:
        return TokenLogprob(token, float(wide[token]))
    top = min(top, len(wide))
    found = np.argpartition(wide, -top)[-top:]
    found = found[np.lexsort((found, -wide[found]))]
    return TokenLogprob(token, float(wide[token]), tuple((int(n), float(wide[n])) for n in found))


class Penalties:
    """Lowers the logits of tokens that the answer already contains.

    Args:
        frequency: subtracted from a token's logit once per occurrence.
        presence: subtracted once from the logit of each token that occurs.
    """

    def __init__(self, frequency: float, presence: float) -> None:
        self._frequency, self._presence = frequency, presence
        self._counts: Counter[int] = Counter()

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Changes logits `[V]` in place."""
        for token, count in self._counts.items():
            logits[token] -= self._presence + self._frequency * count

    def take(self, token: int) -> None:
        """Counts a chosen token."""
        self._counts[token] += 1
