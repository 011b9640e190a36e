"""What changes the logits before a token is chosen: penalties, biases, a grammar; and the log probabilities after.

Source of the penalties: OpenAI's API reference ("Frequency and presence penalties").
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural logarithm of a chosen token's probability, and those of the likeliest tokens, in order."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def logprobs(logits: NDArray[np.floating], token: int, top: int) -> TokenLogprob:
    """Of logits `[V]`, before temperature and whatever changed them; `top` is how many alternatives are told."""
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
    """Lowers the logits of tokens that the answer holds already.

    Args:
        frequency: taken off once for each time that a token came.
        presence: taken off once from each token that came.
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
