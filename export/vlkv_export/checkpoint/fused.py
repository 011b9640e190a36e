"""Matrices that a checkpoint stores as one, taken apart by reference: parts are rows, and rows follow each other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vlkv.errors import CheckpointError
from vlkv_export.checkpoint.fields import show
from vlkv_export.checkpoint.safetensors import Entry
from vlkv_export.checkpoint.weights import Found

Rows = tuple[tuple[str, int], ...]
"""Canonical names of the parts of a matrix, and how many rows each has, in their order."""


def split(folder: Path, found: Found, fused: Iterable[tuple[str, Rows]]) -> Found:
    """Put the parts of each fused matrix in its place. Raises `CheckpointError` for one of another shape."""
    apart = dict(found)
    for name, parts in fused:
        if name not in apart:
            continue
        stored, file, entry = apart.pop(name)
        rows = sum(count for _, count in parts)
        if len(entry.shape) != 2 or entry.shape[0] != rows:
            raise CheckpointError(
                f"{folder / file}: tensor {show(stored)} has shape {show(list(entry.shape))}; config.json makes it "
                f"{rows} rows: {' + '.join(str(count) for _, count in parts)}"
            )
        begin, row_bytes = entry.offset, entry.length // rows
        for part, count in parts:
            length = count * row_bytes
            apart[part] = stored, file, Entry(entry.dtype, (count, entry.shape[1]), begin, length)
            begin += length
    return apart
