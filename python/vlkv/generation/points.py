"""Where an answer stands, to go back to when a step is interrupted.

A step is whole once its token is taken. Until then the cache has lost nothing: a new token is written behind the valid
slots, and what decoding evicts is overwritten only after the token was taken. Overwriting may be done twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlkv.backend.cache import Cache
from vlkv.dtypes import Int64
from vlkv.policies.decode_eviction import Eviction


@dataclass(frozen=True)
class Point:
    """What the cache (B = 1) of an answer under a policy that evicts holds, after some of its tokens were run.

    Attributes:
        tokens: how many of the answer's tokens were run.
        length: `[L, 1]` valid slots, those that are yet to be dropped counted.
        slots: `[L, 1, Hkv]` to overwrite yet; None for none.
        eviction: what goes on from here; it is not changed, steps work on copies.
    """

    tokens: int
    length: Int64
    slots: Int64 | None
    eviction: Eviction

    def settle(self, cache: Cache) -> Point:
        """Makes the cache what it is at this point; returns the same with nothing left to overwrite."""
        cache.length[:] = self.length
        if self.slots is not None:
            cache.overwrite(self.slots)
        return Point(self.tokens, cache.length.copy(), None, self.eviction)
