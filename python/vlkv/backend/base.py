"""The interface between the runtime and a backend, which runs the graphs.

B prompts, S tokens of a call, W observed rows, C cache slots, Hq query heads, Hkv key/value heads, D head dimension,
L layers, N pictures, P image tokens a picture, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vlkv.backend.cache import Array, Cache, Store
from vlkv.dtypes import Float32, Int64
from vlkv.errors import PolicyError
from vlkv.ops.native import native


class Observation(Protocol):
    """The observation of one call: the attention of its rows that lie in the observation window."""

    def add(
        self,
        layer: int,
        row: int,
        total: Float32,
        cache: Cache,
        positions: Int64,
        threshold: float = 0.0,
        threads: int = 0,
        window: int = 0,
    ) -> tuple[int, float]:
        """Adds the attention of one prompt's observed rows in one layer.

        Args:
            layer: the layer's number.
            row: the prompt's row in the batch.
            total: scores `[1,Hkv,C]` to add to; C is the number of cache slots that count.
            cache: the cache that the call ran on, which includes the observed tokens.
            positions: the slots `[W]` of the observed tokens.
            threshold: p of the sparsity measure; a graph that computes sparsity has it built in.
            threads: threads of the operator; 0 for all cores.
            window: the number of slots that each row sees, its own and those before it; 0 for all.

        Returns:
            The number of pairs of a row and a key that it attends to, over all heads, and how many of them are under
            the threshold.
        """
        ...

    def one(self, row: int) -> Observation:
        """The observation of one of the observed rows alone; `PolicyError` where a graph computes scores."""
        ...


@dataclass(frozen=True)
class ObservedQueries:
    """Query rows of the observation window, `[B,Hq,W,D]` per layer, for the native score operator; empty for none.

    `operators` is the address of a tuned library's table, 0 for the installed operators.
    """

    queries: list[Float32]
    operators: int = 0

    def add(
        self,
        layer: int,
        row: int,
        total: Float32,
        cache: Cache,
        positions: Int64,
        threshold: float = 0.0,
        threads: int = 0,
        window: int = 0,
    ) -> tuple[int, float]:
        """See `Observation.add`."""
        query = self.queries[layer][row : row + 1]
        key = cache.keys[layer][row : row + 1, :, : total.shape[2]]
        pairs, below = np.zeros(1, np.int64), np.zeros(1, np.int64)
        scale = query.shape[3] ** -0.5
        beyond = positions >= window if window else np.zeros(len(positions), np.bool_)
        inside = np.flatnonzero(~beyond)
        parts = [(inside, 0, total.shape[2])] if len(inside) or not window else []
        for place in np.flatnonzero(beyond).tolist():
            # the operator sees slots from the first on: a row whose window begins later comes alone
            end = int(positions[place]) + 1
            parts.append((np.array([place]), end - window, end))
        for places, first, end in parts:
            rows = query if len(places) == len(positions) else query[:, :, places]
            slots = (positions[places] - first)[np.newaxis]
            span = slice(first, end)
            native().score(
                rows,
                key[:, :, span],
                slots,
                scale,
                threshold,
                total[:, :, span],
                pairs,
                below,
                threads,
                self.operators,
            )
        return int(pairs[0]), float(below[0])

    def one(self, row: int) -> ObservedQueries:
        """See `Observation.one`."""
        rows = [np.ascontiguousarray(query[:, :, row : row + 1]) for query in self.queries]
        return ObservedQueries(rows, self.operators)


@dataclass(frozen=True)
class ObservedScores:
    """The outputs of a graph that computes scores itself.

    Fields:
        scores: per layer `[B,Hkv,C_l]`.
        sparsity: the share `[L,B]` of pairs under the threshold that is built into the graph.
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
        window: int = 0,
    ) -> tuple[int, float]:
        """See `Observation.add`; graphs that score by themselves have no windows."""
        total += self.scores[layer][row : row + 1, :, : total.shape[2]]
        pairs = int((positions + 1).sum()) * self.query_heads
        return pairs, pairs * float(self.sparsity[layer, row])

    def one(self, row: int) -> ObservedScores:
        """See `Observation.one`."""
        raise PolicyError(
            "reduce 'max' and 'weighted' need each row's attention, and this engine's graph adds the rows; "
            "use an engine for ONNX Runtime on CPUs with --operators native, or a policy with reduce 'sum'"
        )


@dataclass(frozen=True)
class Picked:
    """The tokens that a backend chose itself.

    Fields:
        tokens: each prompt's token, `[B]` int32: drawn, or the lowest id of the largest logit. A NaN is larger than
            every number, and if the largest logit is not finite, nothing is drawn.
        best: the largest logit, `[B]` float32.
    """

    tokens: NDArray[np.int32]
    best: Float32


Choice = NDArray[np.float64]
"""How each prompt's token is chosen, `[B,4]`: temperature (0 for the largest logit), top-k (0 for all tokens), top-p,
and the random number in [0, 1)."""

NOTHING = ObservedQueries([])
"""The observation of a call that observes no rows."""


class Steps(Protocol):
    """Single-token steps over one cache. The next step overwrites the arrays that a step returned.

    Attributes:
        logits: the logits `[B,V]` of the last step.
        observation: the observation of the last step that observed, W = 1; rows of other prompts are undefined.
        picked: the tokens of the last step, if the backend chose them; its logits are then undefined.
        draws: whether the backend draws tokens where it is asked to.
    """

    logits: Float32
    observation: Observation
    picked: Picked | None

    @property
    def draws(self) -> bool:
        """See above."""
        ...

    def step(
        self,
        embeds: Float32,
        positions: Int64,
        active: NDArray[np.bool_],
        watched: NDArray[np.bool_] | None = None,
        choice: Choice | None = None,
    ) -> Float32:
        """Runs one token per prompt, `embeds [B,hidden]` at `positions [B]`; caches of prompts not `active [B]` stay.

        `watched [B]` marks the prompts whose token is observed; None observes nothing, at no cost. `choice` says how
        tokens are chosen, and that nothing else of the logits is asked for: the backend may then choose them itself
        (`picked`). It does if it `draws`; without, it is given greedy choices alone. Returns `logits [B,V]`.
        """
        ...

    def overwrite(self, slots: Int64) -> None:
        """Moves each prompt's last token to another slot and decreases the length: see `Cache.overwrite`."""
        ...

    def close(self) -> None:
        """Gives back what the loop holds; the cache stays. Nothing is stepped after that."""
        ...


class Backend(Protocol):
    """The opened graphs of an engine directory.

    Attributes:
        threads: threads of one operator; 0 for all cores.
        store: allocates the arrays of caches.
        chunk: the most tokens of a call of `extend`; 0 for any number.
        on_device: whether caches lie in a device's memory, where the graphs add the attention of observed rows.
        recalls: whether steps attend to the evicted tokens that `Cache.recall` names.
        notes: what was found out about how the graphs run, for verbose output.
    """

    threads: int
    store: Store
    chunk: int
    on_device: bool
    recalls: bool
    notes: Sequence[str]

    def vision(self, pixels: Float32, graph: str = "vision") -> Float32:
        """Features `[N,P,hidden]` of N tiles, `pixel_values [N,3,height,width]`, by `graph`: `vision` or `video`."""
        ...

    def extend(
        self, embeds: Float32, positions: Int64, cache: Cache, row_index: Int64, last: bool
    ) -> tuple[Float32, Observation]:
        """Runs a chunk of prompt tokens and appends it to the cache.

        Args:
            embeds: the tokens' embeddings `[B,S,hidden]`.
            positions: their positions `[B,S]`.
            cache: holds the earlier tokens; its arrays and lengths are updated.
            row_index: the indices `[B,W]` of the observed rows among the S.
            last: whether to free working memory afterwards.

        Returns:
            Logits `[B,V]` of the last token, and the observation.
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
        """Evicts from one layer of one prompt.

        Args:
            source: keys and values `[1,Hkv,C,D]`, all slots valid.
            score: `[1,Hkv,C]`.
            keep: the number of slots to keep, and how many first and last slots are always among them.
            target: keys and values `[1,Hkv,keep,D]` to write; views are allowed.
            per_head: one selection for each KV head, or one for all.
            merge: whether evicted slots are averaged into kept neighbours.

        Returns:
            The kept positions `[Hkv, keep]`.
        """
        ...

    def steps(self, cache: Cache) -> Steps:
        """Prepares single-token steps over the cache."""
        ...

    def close(self) -> None:
        """Gives back what the graphs hold. Nothing is run after that."""
        ...
