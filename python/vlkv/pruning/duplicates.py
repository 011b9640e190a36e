"""Leaves out image tokens whose patch holds the same pixels as an earlier patch of the same picture.

The pixels are those that the tower receives, and they must be equal. After PixelPrune (arXiv 2604.00886); compared are
all earlier patches of the picture, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlkv.pruning.picture import Mask, Picture


@dataclass(frozen=True)
class Duplicates:
    """Keeps the first token of each distinct patch, and every token that shows no patch.

    A token that is interpolated from several patches is a duplicate if all of them and their weights are.
    """

    def keep(self, picture: Picture) -> Mask:
        """See `Pruner.keep`."""
        layout = picture.layout
        kept = np.ones(len(layout.sources), bool)
        numbers: dict[tuple[tuple[int, ...], bytes], int] = {}
        known: dict[int, int] = {}
        seen: set[tuple[tuple[int, ...], bytes]] = set()

        def number(row: int) -> int:
            """The same number for rows whose patches are equal; a row that is no patch has its own."""
            if row not in known:
                patch = picture.patch(row)
                key = ((row,), b"") if patch is None else (patch.shape, patch.tobytes())
                known[row] = numbers.setdefault(key, len(numbers))
            return known[row]

        for token in picture.shown.tolist():
            weights = b"" if layout.weights is None else layout.weights[token].tobytes()
            key = (tuple(number(row) for row in layout.sources[token].tolist()), weights)
            kept[token] = key not in seen
            seen.add(key)
        return kept
