"""Leaves out image tokens whose patch has one colour throughout and follows another such patch of the same picture.

This is `duplicates` for blank paper alone: equal words or digits in different places all stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlkv.pruning.duplicates import Duplicates
from vlkv.pruning.picture import Mask, Picture


@dataclass(frozen=True)
class Blank:
    """Of the patches of each single colour it keeps the first, and it keeps every other token."""

    def keep(self, picture: Picture) -> Mask:
        """See `Pruner.keep`."""
        rows = picture.layout.sources
        varied = {row for row in np.unique(rows).tolist() if not _one_colour(picture, row)}
        kept = Duplicates().keep(picture)
        for token, shown in enumerate(rows.tolist()):
            kept[token] |= not varied.isdisjoint(shown)
        return kept


def _one_colour(picture: Picture, row: int) -> bool:
    patch = picture.patch(row)
    return patch is not None and bool((patch == patch[:, :1, :1]).all())
