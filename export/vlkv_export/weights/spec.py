"""The description of a weight format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Part = tuple[str, tuple[int, ...]]
"""A part of a stored matrix: its dtype in safetensors' spelling, and its shape."""

Parts = tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Format:
    """How a matrix `[N, K]` is stored for `vlkv.native.Linear`.

    Attributes:
        name: the format's name in `vlkv build --weights`.
        bits: bits of a code; 0 for floats, which are stored as `[N, K]` of the dtype `name`.
        layout: for quantised formats, the dtype and shape of each part for `N` and `K`, in the operator's order.
        encode: for quantised formats, the function that makes the parts of float32 rows `[n, K]`.
        head: the format of the head, if it differs: its rounding affects the choice of every token directly.
    """

    name: str
    bits: int = 0
    layout: Callable[[int, int], Mapping[str, Part]] | None = None
    encode: Callable[[NDArray[Any]], Parts] | None = None
    head: str | None = None
