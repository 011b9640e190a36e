"""What the methods that take a share of a picture's tokens have in common. No method itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vlkv.dtypes import Int64
from vlkv.errors import PolicyError
from vlkv.pruning.picture import Mask, Picture


@dataclass(frozen=True)
class Share(ABC):
    """Keeps a share of the tokens that show a patch, rounded half up and at least one, and all that show none.

    Fields:
        share: the share to keep, in (0, 1].
    """

    share: float
    name: ClassVar[str]

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise PolicyError(
                f"prune {self.name}:{self.share:g} is outside (0, 1]; {self.name}:0.25 keeps a quarter of a picture"
            )

    @abstractmethod
    def choose(self, picture: Picture, count: int) -> Int64:
        """The places in `picture.shown`, which is not empty, of the `count` tokens to keep."""

    def keep(self, picture: Picture) -> Mask:
        """See `Pruner.keep`."""
        shown = picture.shown
        kept = np.ones(len(picture.features), bool)
        if len(shown):
            kept[shown] = False
            count = max(1, int(self.share * len(shown) + 0.5))
            kept[shown[self.choose(picture, count)]] = True
        return kept
