"""What a weight format says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Part = tuple[str, tuple[int, ...]]
"""A part of a stored matrix: its dtype as safetensors calls it, its shape."""

Parts = tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Format:
    """How a matrix `[N, K]` is stored, and multiplied with by `vlkv.native.Linear`.

    Attributes:
        name: what `vlkv build --weights` calls it.
        bits: of a code; 0 for floats, which are stored as `[N, K]` of the dtype `name`.
        layout: of formats with codes: by part the dtype and shape for `N` and `K`, in the operator's order.
        encode: of formats with codes: the parts of float32 rows `[n, K]`.
        head: the format of the head, where that is another. Its rounding reaches every answer's choice directly.
    """

    name: str
    bits: int = 0
    layout: Callable[[int, int], Mapping[str, Part]] | None = None
    encode: Callable[[NDArray[Any]], Parts] | None = None
    head: str | None = None
