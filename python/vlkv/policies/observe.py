"""The observation window of a prompt, and its scores and sparsity, accumulated over chunks.

Scores are sums over rows and sparsity is a share of pairs, so accumulation over chunks is exact. Source: VL-Cache
(arXiv 2410.23317), section 4. L layers, W observed rows, C cache slots, Hq query heads, Hkv key/value heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.base import Observation
from vlkv.backend.cache import Cache
from vlkv.dtypes import Int64
from vlkv.errors import PolicyError
from vlkv.ops.constants import THRESHOLD
from vlkv.policies.policy import Policy
from vlkv.storage.manifest import Manifest, TextFacts


def check_threshold(policy: Policy, manifest: Manifest) -> None:
    """Raises `PolicyError` if the engine's operators have another threshold or sums built in than the policy's."""
    if manifest.operators == "functions" and policy.reduce == "max":
        raise PolicyError(
            f"policy {policy.name!r}: reduce 'max' does not fit this engine of operators 'functions', which adds "
            "rows in its graph; build it with --operators native"
        )
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
    if policy.rows == "probe" and last_image >= 0:
        return range(length, length)
    if policy.rows == "post_vision" and 0 <= last_image < length - 1:
        return range(max(last_image + 1, since), length)
    return range(max(0, length - policy.window), length)


@dataclass(frozen=True, eq=False)
class Probe:
    """Image tokens that run a second time, are observed and discarded.

    Fields:
        end: the slot behind the last image token; they run there.
        slots: the slots `[W]` of these tokens.
    """

    end: int
    slots: Int64


PROBES = 64
"""The most probes of a call: they need so many free slots behind the last picture."""


class Observer:
    """Accumulates the scores of one prompt.

    Attributes:
        rows: the prompt positions in the observation window.
        probe: the tokens to run a second time; None for none.
        scores: the scores per layer, `[1, Hkv, C]` float32.
        sparsity: the sparsity `[L]` float64 of the rows added so far.
    """

    def __init__(self, text: TextFacts, policy: Policy, length: int, rows: range, threads: int = 0) -> None:
        self.rows = rows
        self.probe: Probe | None = None
        self.scores = [np.zeros((1, text.kv_heads, length), np.float32) for _ in range(text.layers)]
        self._pairs = np.zeros((text.layers, 1), np.int64)
        self._below = np.zeros((text.layers, 1), np.float64)
        self._text, self._policy, self._threads = text, policy, threads

    @property
    def stays(self) -> int:
        """How many of the prompt's last tokens `keep_observed` keeps: the window, or all behind a probed picture."""
        length: int = self.scores[0].shape[2]
        return len(self.rows) if self.probe is None else length - self.probe.end

    @property
    def room(self) -> int:
        """The free slots that the probes of a call need behind the prompt."""
        length: int = self.scores[0].shape[2]
        return 0 if self.probe is None else max(0, self.probe.end + PROBES - length)

    @property
    def sparsity(self) -> NDArray[np.float64]:
        """The share of attended pairs whose weight is under the threshold, per layer."""
        below = self._below[:, 0]
        return np.divide(below, self._pairs[:, 0], out=np.zeros_like(below), where=self._pairs[:, 0] > 0)

    def grown(self, length: int, rows: range, probe: Probe | None = None) -> Observer:
        """A copy with the same scores for a longer prompt, to which more rows can be added.

        Of the probes those that this one has run are left out.
        """
        other = Observer(self._text, self._policy, length, rows, self._threads)
        for new, old in zip(other.scores, self.scores, strict=True):
            new[:, :, : old.shape[2]] = old
        if probe is not None:
            ran = self.probe.end if self.probe is not None else 0
            other.probe = Probe(probe.end, probe.slots[probe.slots >= ran])
        other._pairs[:], other._below[:] = self._pairs, self._below
        return other

    def add(self, seen: Observation, cache: Cache, rows: NDArray[np.int64]) -> None:
        """Adds a chunk's observation; `rows` `[W]` are the observed rows' positions in the prompt."""
        if not len(rows):
            return
        if self._policy.reduce == "sum":
            self._add(seen, cache, rows)
            return
        for number in range(len(rows)):
            self._add(seen.one(number), cache, rows[number : number + 1])

    def _add(self, seen: Observation, cache: Cache, rows: NDArray[np.int64]) -> None:
        """`add` for rows whose attention is summed; the slots of probes, behind the last picture, don't count."""
        windows = self._text.layer_windows or (0,) * len(self.scores)
        width, largest = int(rows.max()) + 1, self._policy.reduce == "max"
        for layer, (total, window) in enumerate(zip(self.scores, windows, strict=True)):
            found, counted = total, total.shape[2]
            if self.probe is not None:
                counted = self.probe.end
            if largest or self.probe is not None:
                found = np.zeros((*total.shape[:2], max(width, counted)), np.float32)
            pairs, below = seen.add(
                layer, 0, found, cache, rows, self._policy.threshold, self._threads, window
            )
            self._pairs[layer] += pairs
            self._below[layer] += below
            if found is not total:
                (np.maximum if largest else np.add)(
                    total[:, :, :counted], found[:, :, :counted], out=total[:, :, :counted]
                )
