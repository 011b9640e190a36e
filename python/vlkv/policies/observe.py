"""The observation window of a prompt, and its scores and sparsity, accumulated over chunks.

Scores are sums over rows and sparsity is a share of pairs, so accumulation over chunks is exact. Source: VL-Cache
(arXiv 2410.23317), section 4. L layers, W observed rows, C cache slots, Hq query heads, Hkv key/value heads.
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
    """Raises `PolicyError` if the engine's operators have another threshold built in than the policy's."""
    if manifest.operators == "functions" and policy.rows != "none" and policy.threshold != THRESHOLD:
        raise PolicyError(
            f"policy {policy.name!r}: threshold {policy.threshold} does not fit this engine of operators "
            f"'functions', which has {THRESHOLD} built in; build it with --operators native"
        )


def observed_rows(policy: Policy, length: int, last_image: int, since: int = 0) -> range:
    """The observation window: the prompt rows that a policy observes.

    Args:
        policy: the policy.
        length: tokens of the prompt.
        last_image: the position of the last image token, -1 without one. Without a picture, or if a picture ends the
            prompt, the window is the last `policy.window` rows.
        since: the first token of the newest turn of a conversation; rows after a picture are those of that turn.
    """
    if policy.rows == "none":
        return range(0)
    if policy.rows == "all":
        return range(length)
    if policy.rows == "post_vision" and 0 <= last_image < length - 1:
        return range(max(last_image + 1, since), length)
    return range(max(0, length - policy.window), length)


class Observer:
    """Accumulates the scores of one prompt.

    Attributes:
        rows: the prompt positions in the observation window.
        scores: the scores per layer, `[1, Hkv, C]` float32.
        sparsity: the sparsity `[L]` float64 of the rows added so far.
    """

    def __init__(self, text: TextFacts, policy: Policy, length: int, rows: range, threads: int = 0) -> None:
        self.rows = rows
        self.scores = [np.zeros((1, text.kv_heads, length), np.float32) for _ in range(text.layers)]
        self._pairs = np.zeros((text.layers, 1), np.int64)
        self._below = np.zeros((text.layers, 1), np.float64)
        self._text, self._policy, self._threads = text, policy, threads

    @property
    def sparsity(self) -> NDArray[np.float64]:
        """The share of attended pairs whose weight is under the threshold, per layer."""
        below = self._below[:, 0]
        return np.divide(below, self._pairs[:, 0], out=np.zeros_like(below), where=self._pairs[:, 0] > 0)

    def grown(self, length: int, rows: range) -> Observer:
        """A copy with the same sums for a longer prompt, to which more rows can be added."""
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
