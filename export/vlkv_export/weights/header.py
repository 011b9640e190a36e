"""The header of a safetensors file that is about to be written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ALIGNMENT = 64
"""The first tensor begins at a multiple of this."""


@dataclass(frozen=True)
class Place:
    """Where a tensor will lie: `length` bytes from byte `offset` of the file, of a dtype as safetensors names it."""

    dtype: str
    shape: Sequence[int]
    offset: int
    length: int


def lay_out(tensors: Iterable[tuple[str, str, Sequence[int], int]]) -> tuple[bytes, dict[str, Place]]:
    """The bytes that begin a file, and the places of its tensors by name.

    Args:
        tensors: name, dtype, shape and bytes of each, in the order in which their contents follow the header.
    """
    found, end = list(tensors), 0
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, dtype, shape, length in found:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + length]}
        end += length
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    places, offset = {}, 8 + len(text)
    for name, dtype, shape, length in found:
        places[name] = Place(dtype, shape, offset, length)
        offset += length
    return len(text).to_bytes(8, "little") + text, places
