"""The observation window of a prompt, and its scores and sparsity, accumulated over chunks.

Scores are sums over rows and sparsity is a share of pairs, so accumulation over chunks is exact. Source: VL-Cache
(arXiv 2410.23317), section 4. L layers, W observed rows, C cache slots, Hq query heads, Hkv key/value heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.base import Backend, Observation
from vlkv.backend.cache import Cache
from vlkv.dtypes import Int64
from vlkv.errors import PolicyError
from vlkv.ops.constants import THRESHOLD
from vlkv.policies.policy import Policy
from vlkv.storage.manifest import Manifest, TextFacts


def check_fit(policy: Policy, manifest: Manifest, backend: Backend) -> None:
    """Raises `PolicyError` if the engine's graphs, its device or its model do not let the policy do what it says."""
    functions, on_device = manifest.operators == "functions", backend.on_device
    if policy.reduce != "sum" and (functions or on_device):
        raise PolicyError(
            f"policy {policy.name!r}: reduce {policy.reduce!r} does not fit this engine, which adds rows in its "
            "graph; use one for ONNX Runtime on CPUs, built with --operators native"
        )
    if policy.diversity != "none" and on_device:
        raise PolicyError(
            f"policy {policy.name!r}: diversity {policy.diversity!r} reads keys and values in host memory, and this "
            "engine's are on a device; use --device cpu, or a policy with diversity 'none'"
        )
    if functions and policy.rows != "none" and policy.threshold != THRESHOLD:
        raise PolicyError(
            f"policy {policy.name!r}: threshold {policy.threshold} does not fit this engine of operators "
            f"'functions', which has {THRESHOLD} built in; build it with --operators native"
        )
    if policy.recall is not None and any(manifest.text.layer_windows):
        raise PolicyError("recall does not fit this model, whose layers have sliding windows; leave it out")
    if policy.recall is not None and not backend.recalls:
        raise PolicyError(
            "recall needs an engine for ONNX Runtime on CPUs with native operators, untuned, whose heads are a "
            "multiple of 8 wide; build it anew with `vlkv build --backend onnxruntime`, or leave recall out"
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
        image: the slots `[C]` of image tokens; none unless the caller sets it.
    """

    def __init__(self, text: TextFacts, policy: Policy, length: int, rows: range, threads: int = 0) -> None:
        self.rows = rows
        self.image: NDArray[np.bool_] = np.zeros(length, bool)
        self.probe: Probe | None = None
        self.scores = [np.zeros((1, text.kv_heads, length), np.float32) for _ in range(text.layers)]
        self._pairs = np.zeros((text.layers, 1), np.int64)
        self._below = np.zeros((text.layers, 1), np.float64)
        self._text, self._policy, self._threads = text, policy, threads
        self._windows = text.layer_windows or (0,) * text.layers
        self._vision: NDArray[np.float64] | None = None
        self._held: list[tuple[Observation, NDArray[np.int64]]] = []

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

    def shares(self, policy: Policy) -> NDArray[np.float64]:
        """How little of the budget each layer claims, `[L]` from 0 to 1, by a policy's allocation."""
        if policy.allocation != "vision":
            return self.sparsity
        seen = self._seen() if self._vision is None else self._vision
        claims: NDArray[np.float64] = np.divide(
            seen, seen.max(), out=np.ones_like(seen), where=seen.max() > 0
        )
        return 1.0 - claims

    def _seen(self) -> NDArray[np.float64]:
        """The attention `[L]` that image tokens received."""
        return np.array([score[0][:, self.image].sum(dtype=np.float64) for score in self.scores])

    def finish(self, cache: Cache) -> None:
        """Completes the scores once all rows were added; `cache` still holds the prompt.

        With `reduce="weighted"` this is a second pass over the queries of the window, which were kept for it.
        """
        if not self._held or not self.image.any():
            return
        self._vision = self._seen()
        heads = self._text.query_heads
        sums = [score[0].sum(axis=0, dtype=np.float64) / heads for score in self.scores]
        weighted = [np.zeros_like(score) for score in self.scores]
        for seen, rows in self._held:
            for number, row in enumerate(rows.tolist()):
                one = seen.one(number)
                weights = [total[row] / (self.rows.stop - row) for total in sums]
                self._each(one, cache, rows[number : number + 1], weighted, weights)
        for score, other in zip(self.scores, weighted, strict=True):
            score[:, :, self.image] = other[:, :, self.image]
        self._held = []

    def _each(
        self,
        seen: Observation,
        cache: Cache,
        rows: NDArray[np.int64],
        totals: list[NDArray[np.float32]],
        weights: list[np.float64],
    ) -> None:
        """Adds the attention of one row, times a weight per layer, to other totals."""
        for layer, (total, weight, window) in enumerate(zip(totals, weights, self._windows, strict=True)):
            found = np.zeros_like(total)
            seen.add(layer, 0, found, cache, rows, self._policy.threshold, self._threads, window)
            total += np.float32(weight) * found

    def go_on(self, earlier: Observer) -> None:
        """Takes over the scores of the same policy's observer of a prompt with which this one begins.

        More rows can then be added. Probes that the earlier observer has run are left out.
        """
        for mine, other in zip(self.scores, earlier.scores, strict=True):
            mine[:, :, : other.shape[2]] = other
        if self.probe is not None and earlier.probe is not None:
            slots = self.probe.slots
            self.probe = Probe(self.probe.end, slots[slots >= earlier.probe.end])
        self._pairs[:], self._below[:] = earlier._pairs, earlier._below

    def add(self, seen: Observation, cache: Cache, rows: NDArray[np.int64]) -> None:
        """Adds a chunk's observation; `rows` `[W]` are the observed rows' positions in the prompt."""
        if not len(rows):
            return
        if self._policy.reduce != "max":
            self._add(seen, cache, rows)
            if self._policy.reduce == "weighted":
                self._held.append((seen, rows))
            return
        for number in range(len(rows)):
            self._add(seen.one(number), cache, rows[number : number + 1])

    def _add(self, seen: Observation, cache: Cache, rows: NDArray[np.int64]) -> None:
        """`add` for rows whose attention is summed; the slots of probes, behind the last picture, don't count."""
        width, largest = int(rows.max()) + 1, self._policy.reduce == "max"
        for layer, (total, window) in enumerate(zip(self.scores, self._windows, strict=True)):
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
