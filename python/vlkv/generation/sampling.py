"""Which token comes next: greedy, or drawn at random under temperature, top-k and top-p."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlkv.errors import SamplingError, VlkvError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one request's tokens are chosen and when it ends. A value outside its range is a `SamplingError`.

    Fields:
        temperature: 0 takes the most likely token; else logits are divided by it.
        top_k: only the k most likely tokens, and those as likely as the k-th; 0 or None for all.
        top_p: only the smallest set of most likely tokens whose probabilities sum to this or more.
        seed: same seed, same draws; None draws anew each time.
        max_new_tokens: the most tokens of an answer.
        stop: texts before which an answer ends; one text may be given as it is.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None
    max_new_tokens: int = 256
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._need("stop", isinstance(self.stop, str | list | tuple), "a text, or a tuple of texts")
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        self._need("temperature", _is_number(self.temperature) and self.temperature >= 0, "0 or more")
        top_k = 0 if self.top_k is None else self.top_k
        self._need("top_k", _is_whole(top_k) and top_k >= 0, "a whole number, 0 or more")
        self._need("top_p", _is_number(self.top_p) and 0 < self.top_p <= 1, "in (0, 1]")
        seed = 0 if self.seed is None else self.seed
        self._need("seed", _is_whole(seed) and 0 <= seed < 2**64, "a whole number in [0, 2^64)")
        tokens = self.max_new_tokens
        self._need("max_new_tokens", _is_whole(tokens) and tokens >= 1, "a whole number, 1 or more")
        self._need(
            "stop", all(isinstance(text, str) and text for text in self.stop), "texts that are not empty"
        )

    def _need(self, name: str, right: bool, wanted: str) -> None:
        if not right:
            raise SamplingError(f"{name} {getattr(self, name)!a:.80} is not {wanted}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    whole = _is_whole(value)
    return whole or (isinstance(value, float | np.floating) and math.isfinite(value))


class Sampler:
    """One request's choices; it has its own random numbers, so that other requests don't change them."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.Generator(np.random.Philox(sampling.seed))

    def pick(self, logits: NDArray[np.floating]) -> int:
        """Choose a token from logits `[V]`: greedy the lowest id of the largest, else a draw.

        NaN and infinite largest logits are a `VlkvError`: the model or its weights are broken.
        """
        best = _best(logits)
        if self._sampling.temperature == 0:
            return best
        kept, weight = kept_tokens(logits, self._sampling)
        total = np.cumsum(weight)
        place = int(np.searchsorted(total, self._random.random() * total[-1], side="right"))
        return int(kept[place])


def _best(logits: NDArray[np.floating]) -> int:
    if logits.ndim != 1 or logits.size == 0:
        raise VlkvError(f"logits of one token are wanted, [V], not {list(logits.shape)}")
    best = int(logits.argmax())  # a NaN counts as the largest
    if not np.isfinite(logits[best]):
        raise VlkvError(
            f"the model's logits hold {logits[best]} (token {best}): damaged or overflowing weights"
        )
    return best


def kept_tokens(
    logits: NDArray[np.floating], sampling: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the ids that may be drawn, ascending, and their weights (largest 1), from finite logits `[V]`.

    The steps and their order are those of transformers: temperature, top-k, top-p.
    """
    scaled = logits.astype(np.float64)
    scaled -= scaled.max()
    with np.errstate(over="ignore"):
        scaled /= sampling.temperature
    kept = np.arange(len(scaled), dtype=np.int64)
    if sampling.top_k and sampling.top_k < len(scaled):
        lowest = np.partition(scaled, -sampling.top_k)[-sampling.top_k]
        kept = np.flatnonzero(scaled >= lowest)
    weight = np.exp(scaled[kept])
    if sampling.top_p < 1:
        order = np.argsort(weight, kind="stable")
        below = np.cumsum(weight[order]) <= (1 - sampling.top_p) * weight.sum()
        below[-1] = False
        inside = np.sort(order[~below])
        kept, weight = kept[inside], weight[inside]
    return kept, weight
