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

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Observation:
    """What one call saw of the observed rows, per layer.

    A backend whose engine leaves scoring to native operators gives `queries`, the rows `[B,Hq,W,D]`; else
    `scores` holds `[B,Hkv,C_l]` and `sparsity` `[L,B]`. With W = 0 all are empty.
    """

    queries: list[Floats]
    scores: list[Floats]
    sparsity: Floats | None


class Steps(Protocol):
    """A loop of single-token steps over one cache. What a step returns, the next one overwrites.

    Attributes:
        logits: `[B,V]` of the last step.
        observation: of the last step that watched, W = 1; rows of prompts that were not watched hold anything.
    """

    logits: Floats
    observation: Observation

    def step(
        self,
        embeds: Floats,
        positions: Ints,
        active: NDArray[np.bool_],
        watched: NDArray[np.bool_] | None = None,
    ) -> Floats:
        """One token a prompt: `embeds [B,hidden]` at `positions [B]`; the caches of those not `active [B]` stay.

        `watched [B]` asks what the tokens of some prompts attend to; without it nothing is observed, at no cost.
        Returns `logits [B,V]`.
        """
        ...

    def overwrite(self, slots: Ints) -> None:
        """Each prompt's last token takes another's slot, and the length goes down: see `Cache.overwrite`."""
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

    def vision(self, pixels: Floats) -> Floats:
        """Image features `[N,P,hidden]` of `pixel_values [N,3,height,width]`."""
        ...

    def extend(
        self, embeds: Floats, positions: Ints, cache: Cache, row_index: Ints, last: bool
    ) -> tuple[Floats, Observation]:
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
        score: Floats,
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
