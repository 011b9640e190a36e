"""The `Recall` record: evicted tokens stay in host memory, and each decoded token attends to the best pages of them.

Source: Quest (arXiv 2406.10774). `cpp/include/vlkv/recall.h` has the format and the rating of pages, and
`docs/notes/recall.md` the design. L layers, Hkv key/value heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from vlkv.errors import PolicyError
from vlkv.storage.manifest import TextFacts, cache_row

PAGE = 16
MOST_PAGE = 1024
BOUNDS = 2 * 2
"""Bytes of an element's two bounds: bfloat16."""


@dataclass(frozen=True, slots=True)
class Recall:
    """How much of the evicted tokens each step reads.

    Fields:
        share: the share of the prompt's tokens that a step reads of them, per layer and KV head, in whole pages and at
            least one.
        page: the tokens of a page.
    """

    share: float = 0.1
    page: int = PAGE

    def __post_init__(self) -> None:
        share, page = self.share, self.page
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0.0 < share <= 1.0:
            raise PolicyError(
                f"recall {share!r} is outside (0, 1]; give a share of the prompt, such as 0.1, or leave it out"
            )
        if isinstance(page, bool) or not isinstance(page, int) or not 1 <= page <= MOST_PAGE:
            raise PolicyError(f"recall's page {page!r} is not a whole number from 1 to {MOST_PAGE}")

    def pages(self, length: int) -> int:
        """The pages that a step reads of each KV head, for a prompt of `length` tokens."""
        return max(1, ceil(round(self.share * length / self.page, 9)))

    def most_bytes(self, text: TextFacts, evicted: int) -> int:
        """The most bytes that so many evicted tokens take, summed over layers."""
        row = 2 * cache_row("int8", text.head_dim)
        pages = evicted // self.page + text.layers
        return text.kv_heads * (evicted * row + pages * BOUNDS * text.head_dim)
