"""What a backend offers to the runtime, whatever runs the graphs.

B prompts, S tokens of a call, W observed rows, C cache slots, Hq query heads, Hkv key/value heads, D head dimension,
L layers, N pictures, P image tokens a picture, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.cache import Array, Cache, Store
from vlkv.dtypes import Float32, Int64
from vlkv.ops.native import native


class Observation(Protocol):
    """What one call saw of its observation window."""

    def add(
        self,
        layer: int,
        row: int,
        total: Float32,
        cache: Cache,
        positions: Int64,
        threshold: float = 0.0,
        threads: int = 0,
    ) -> tuple[int, float]:
        """Adds what the observed rows of one prompt attended to in one layer.

        Args:
            layer: which.
            row: the prompt's place in the batch.
            total: scores `[1,Hkv,C]` to add to; C says how many of the cache's slots count.
            cache: that the call ran on, the observed tokens in it.
            positions: `[W]`, the slots of the observed tokens.
            threshold: p of the sparsity measure; a graph that gives sparsity has it built in.
            threads: of the operator; 0 for all cores.

        Returns:
            The pairs of a row and a key that it attends to, over all heads, and how many are under the threshold.
        """
        ...


@dataclass(frozen=True)
class ObservedQueries:
    """The observed rows as they are, for the native score operator: per layer `[B,Hq,W,D]`. Without layers nothing."""

    queries: list[Float32]

    def add(
        self,
        layer: int,
        row: int,
        total: Float32,
        cache: Cache,
        positions: Int64,
        threshold: float = 0.0,
        threads: int = 0,
    ) -> tuple[int, float]:
        """See `Observation.add`."""
        query = self.queries[layer][row : row + 1]
        key = cache.keys[layer][row : row + 1, :, : total.shape[2]]
        pairs, below = np.zeros(1, np.int64), np.zeros(1, np.int64)
        scale = query.shape[3] ** -0.5
        native().score(query, key, positions[np.newaxis], scale, threshold, total, pairs, below, threads)
        return int(pairs[0]), float(below[0])


@dataclass(frozen=True)
class ObservedScores:
    """What a graph that scores by itself gives out.

    Fields:
        scores: per layer `[B,Hkv,C_l]`.
        sparsity: `[L,B]`, the share of pairs under the threshold that the graph has built in.
        query_heads: Hq.
    """

    scores: list[Float32]
    sparsity: Float32
    query_heads: int

    def add(
        self,
        layer: int,
        row: int,
        total: Float32,
        cache: Cache,
        positions: Int64,
        threshold: float = 0.0,
        threads: int = 0,
    ) -> tuple[int, float]:
        """See `Observation.add`."""
        total += self.scores[layer][row : row + 1, :, : total.shape[2]]
        pairs = int((positions + 1).sum()) * self.query_heads
        return pairs, pairs * float(self.sparsity[layer, row])


NOTHING = ObservedQueries([])
"""What a call without observed rows saw."""


class Steps(Protocol):
    """A loop of single-token steps over one cache. What a step returns, the next one overwrites.

    Attributes:
        logits: `[B,V]` of the last step.
        observation: of the last step that watched, W = 1; rows of prompts that were not watched hold anything.
    """

    logits: Float32
    observation: Observation

    def step(
        self,
        embeds: Float32,
        positions: Int64,
        active: NDArray[np.bool_],
        watched: NDArray[np.bool_] | None = None,
    ) -> Float32:
        """One token a prompt: `embeds [B,hidden]` at `positions [B]`; the caches of those not `active [B]` stay.

        `watched [B]` asks what the tokens of some prompts attend to; without it nothing is observed, at no cost.
        Returns `logits [B,V]`.
        """
        ...

    def overwrite(self, slots: Int64) -> None:
        """Each prompt's last token takes another's slot, and the length goes down: see `Cache.overwrite`."""
        ...

    def close(self) -> None:
        """Gives back what the loop holds; the cache stays. Nothing is stepped after that."""
        ...


class Backend(Protocol):
    """The graphs of an engine directory, opened.

    Attributes:
        threads: of one operator; 0 for all cores.
        store: makes the arrays of caches.
        chunk: most tokens of a call of `extend`; 0 for any number.
    """

    threads: int
    store: Store
    chunk: int

    def vision(self, pixels: Float32) -> Float32:
        """Features `[N,P,hidden]` of N tiles, `pixel_values [N,3,height,width]`."""
        ...

    def extend(
        self, embeds: Float32, positions: Int64, cache: Cache, row_index: Int64, last: bool
    ) -> tuple[Float32, Observation]:
        """Runs a chunk of prompt tokens and appends it to the cache.

        Args:
            embeds: `[B,S,hidden]`.
            positions: `[B,S]`.
            cache: holds the tokens before these; its arrays and lengths are updated.
            row_index: `[B,W]`, which of the S rows are observed.
            last: whether working memory is given back afterwards.

        Returns:
            Logits `[B,V]` of the last token, and what was observed.
        """
        ...

    def evict(
        self,
        source: tuple[Array, Array],
        score: Float32,
        keep: tuple[int, int, int],
        target: tuple[Array, Array],
        per_head: bool,
        merge: bool,
    ) -> NDArray[np.int32]:
        """Cuts one layer of one prompt.

        Args:
            source: keys and values `[1,Hkv,C,D]`, all slots valid.
            score: `[1,Hkv,C]`.
            keep: how many slots stay, of them the first and the last that always do.
            target: keys and values `[1,Hkv,keep,D]` to write; views are fine.
            per_head: one selection for each KV head, or one for all.
            merge: whether the evicted are averaged into kept neighbours.

        Returns:
            The kept positions `[Hkv, keep]`.
        """
        ...

    def steps(self, cache: Cache) -> Steps:
        """A loop of single-token steps over that cache."""
        ...

    def close(self) -> None:
        """Gives back what the graphs hold. Nothing is run after that."""
        ...
