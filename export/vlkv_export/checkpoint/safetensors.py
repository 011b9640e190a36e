"""Reads the header of a safetensors file: names, sizes and offsets of its tensors. Weights are not read."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlkv.errors import CheckpointError
from vlkv_export.checkpoint.facts import Dtype
from vlkv_export.checkpoint.fields import parse_object, show

MAX_HEADER_BYTES = 100_000_000
MAX_RANK = 16
BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
DTYPES: dict[str, Dtype] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
LFS = b"version "


@dataclass(frozen=True)
class Entry:
    """One tensor of a header: its dtype in the format's spelling, its shape, and its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


def read_header(path: Path) -> dict[str, Entry]:
    """Read all tensors of a file, by name; `offset` counts from the start of the file.

    Raises `CheckpointError` for a file that is missing, truncated or malformed: a header above 100 MB or beyond the
    end, JSON that does not follow the format, sizes that contradict shapes, tensors that overlap, leave gaps, or do
    not end where the file ends.
    """
    data, size = _read(path)
    values = parse_object(data, f"{path}: the header")
    values.pop("__metadata__", None)
    entries = {name: _entry(path, name, value) for name, value in values.items()}
    _check_order(path, entries, size - 8 - len(data))
    start = 8 + len(data)
    return {
        name: Entry(entry.dtype, entry.shape, start + entry.offset, entry.length)
        for name, entry in entries.items()
    }


def _read(path: Path) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            prefix = file.read(8)
            if prefix == LFS and size < 1024:
                raise CheckpointError(
                    f"{path} is a Git LFS pointer, not the file; fetch it with `git lfs pull`"
                )
            if len(prefix) < 8:
                raise CheckpointError(f"{path} is truncated: {size} bytes, no safetensors header")
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{path} is not a safetensors file: its header would have {length} bytes; "
                    f"at most {MAX_HEADER_BYTES} are allowed"
                )
            data = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
    if len(data) < length:
        raise CheckpointError(
            f"{path} is truncated: its header says {8 + length} bytes or more, the file has {size}"
        )
    return data, size


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _entry(path: Path, name: str, value: Any) -> Entry:
    where = f"{path}: tensor {show(name)}"
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise CheckpointError(f"{where} has no dtype, shape and data_offsets in the header")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise CheckpointError(f"{where} has dtype {show(dtype)}, which the format does not have")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(_natural, shape)):
        raise CheckpointError(f"{where} has shape {show(shape)}; it must be a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_natural, offsets)):
        raise CheckpointError(f"{where} has data_offsets {show(offsets)}; they must be a start and an end")
    begin, end = offsets
    expected = math.prod(shape) * BYTES[dtype]
    if end - begin != expected:
        raise CheckpointError(
            f"{where} of {dtype} {show(shape)} needs {expected} bytes, its data_offsets {show(offsets)} "
            f"give {end - begin}"
        )
    return Entry(dtype, tuple(shape), begin, expected)


def _check_order(path: Path, entries: dict[str, Entry], available: int) -> None:
    reached = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].length)):
        if entry.offset != reached:
            what = "overlaps the tensor before it" if entry.offset < reached else "leaves a gap before it"
            raise CheckpointError(
                f"{path}: tensor {show(name)} at {entry.offset} {what} (expected {reached})"
            )
        reached += entry.length
    if reached > available:
        raise CheckpointError(
            f"{path} is truncated: its header says {reached} bytes of weights, the file has {available}"
        )
    if reached < available:
        raise CheckpointError(
            f"{path} is damaged: its header says {reached} bytes of weights, the file has {available}"
        )
