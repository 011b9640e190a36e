"""Token embeddings, read row by row from the file of the embedding table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlkv.errors import EngineError
from vlkv.storage.manifest import Embedding


class TokenEmbedding:
    """The memory-mapped table `[V, hidden]`: a row is read when its token is used.

    Args:
        directory: the engine directory.
        facts: the table's location.
    """

    def __init__(self, directory: Path, facts: Embedding) -> None:
        stored = np.float32 if facts.dtype == "float32" else np.uint16
        self._dtype, self._scale = facts.dtype, facts.scale
        self._table = np.memmap(directory / facts.file, stored, "r", facts.offset, facts.shape)

    def rows(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The embeddings `[S, hidden]` float32 of token ids `[S]`."""
        if token_ids.size and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < len(self._table):
            wrong = token_ids[(token_ids < 0) | (token_ids >= len(self._table))].flat[0]
            raise EngineError(
                f"token {wrong} has no embedding, the table has {len(self._table)}: wrong tokenizer for this model"
            )
        rows = np.asarray(self._table[token_ids])
        if self._dtype == "float16":
            rows = rows.view(np.float16).astype(np.float32)
        elif self._dtype == "bfloat16":
            rows = (rows.astype(np.uint32) << 16).view(np.float32)
        return rows if self._scale == 1.0 else rows * np.float32(self._scale)
