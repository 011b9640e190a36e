"""A store of one prompt's evicted tokens, which the graph's attention finds by its number.

Hkv key/value heads, C cache slots, D head dimension.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkv.ops.native import native


class RecallStore:
    """Evicted keys and values in 8 bits, in pages with bounds: `cpp/include/vlkv/recall.h`.

    Args:
        layers: L.
        kv_heads: Hkv.
        head_dim: D.
        page: the tokens of a page.
        pages: the pages that a step reads of each KV head.
        threads: threads that fill it; 0 for all cores.

    Attributes:
        id: the number by which the graph's input `recall` names it.
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, page: int, pages: int, threads: int = 0
    ) -> None:
        self._native = native().Recall(layers, kv_heads, head_dim, page, pages)
        self._threads = threads
        self.id: int = self._native.id

    def add(self, layer: int, key: Any, value: Any, kept: NDArray[np.int32]) -> None:
        """Fills a layer with the slots of `key` and `value` `[1,Hkv,C,row]` that `kept` `[Hkv,count]` does not name.

        Raises:
            ValueError: a shape or a kept slot is wrong, or the layer is filled already.
        """
        self._native.add(layer, key, value, np.ascontiguousarray(kept, np.int32), self._threads)

    @property
    def bytes(self) -> int:
        """Bytes of all pages and bounds."""
        return int(self._native.bytes)

    @property
    def bytes_read(self) -> int:
        """Bytes that steps have read of them so far."""
        return int(self._native.bytes_read)
