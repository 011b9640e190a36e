"""The progress callbacks of a build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Watch:
    """`step` receives the name of each step, `total` its weight bytes, `data` the bytes read since its last call."""

    step: Callable[[str], None] = lambda step: None
    data: Callable[[int], None] = lambda read: None
    total: Callable[[int], None] = lambda size: None
