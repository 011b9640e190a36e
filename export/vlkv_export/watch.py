"""Who is told how a build goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Watch:
    """`step` is told the name of each step, `total` the weight bytes of one, `data` those read since its last call."""

    step: Callable[[str], None] = lambda step: None
    data: Callable[[int], None] = lambda read: None
    total: Callable[[int], None] = lambda size: None
