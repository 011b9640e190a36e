"""Which rows of a prompt are observed, and what they attended to, added up over chunks.

Score is a sum over rows and sparsity a share of pairs, so that chunks add up exactly. Source: VL-Cache (arXiv
2410.23317), section 4. L layers, W observed rows, C cache slots, Hq query heads, Hkv key/value heads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.base import Observation
from vlkv.backend.cache import Cache
from vlkv.errors import PolicyError
from vlkv.ops.constants import THRESHOLD
from vlkv.policies.policy import Policy
from vlkv.storage.manifest import Manifest, TextFacts


def check_threshold(policy: Policy, manifest: Manifest) -> None:
    """A policy whose threshold the engine's operators do not have is a `PolicyError`."""
    if manifest.operators == "functions" and policy.rows != "none" and policy.threshold != THRESHOLD:
        raise PolicyError(
            f"policy {policy.name!r}: threshold {policy.threshold} does not go with an engine of operators "
            f"'functions', which has {THRESHOLD}; build one of operators 'native'"
        )


def observed_rows(policy: Policy, length: int, last_image: int, since: int = 0) -> range:
    """The prompt rows that a policy observes.

    Args:
        policy: says which.
        length: tokens of the prompt.
        last_image: position of the last image token, -1 where there is none. Without a picture, and where a
            picture ends the prompt, the rows after it are the last `policy.window`.
        since: where the newest turn of a conversation begins: rows after a picture are those of that turn.
    """
    if policy.rows == "none":
        return range(0)
    if policy.rows == "all":
        return range(length)
    if policy.rows == "post_vision" and 0 <= last_image < length - 1:
        return range(max(last_image + 1, since), length)
    return range(max(0, length - policy.window), length)


class Observer:
    """Adds up scores of one prompt.

    Attributes:
        rows: positions of the prompt that are to be observed.
        scores: per layer `[1, Hkv, C]` float32.
        sparsity: `[L]` float64, of what was added so far.
    """

    def __init__(self, text: TextFacts, policy: Policy, length: int, rows: range, threads: int = 0) -> None:
        self.rows = rows
        self.scores = [np.zeros((1, text.kv_heads, length), np.float32) for _ in range(text.layers)]
        self._pairs = np.zeros((text.layers, 1), np.int64)
        self._below = np.zeros((text.layers, 1), np.float64)
        self._text, self._policy, self._threads = text, policy, threads

    @property
    def sparsity(self) -> NDArray[np.float64]:
        """Share of the attended pairs whose weight is under the threshold, per layer."""
        below = self._below[:, 0]
        return np.divide(below, self._pairs[:, 0], out=np.zeros_like(below), where=self._pairs[:, 0] > 0)

    def grown(self, length: int, rows: range) -> Observer:
        """The same sums with space for a longer prompt, to add more of its rows to."""
        other = Observer(self._text, self._policy, length, rows, self._threads)
        for new, old in zip(other.scores, self.scores, strict=True):
            new[:, :, : old.shape[2]] = old
        other._pairs[:], other._below[:] = self._pairs, self._below
        return other

    def add(self, seen: Observation, cache: Cache, rows: NDArray[np.int64]) -> None:
        """Adds a chunk's observation; `rows` `[W]` are the observed rows' positions in the prompt."""
        if not len(rows):
            return
        windows = self._text.layer_windows or (0,) * len(self.scores)
        for layer, (total, window) in enumerate(zip(self.scores, windows, strict=True)):
            pairs, below = seen.add(
                layer, 0, total, cache, rows, self._policy.threshold, self._threads, window
            )
            self._pairs[layer] += pairs
            self._below[layer] += below
