"""Reads messages of protocol buffers without their package: https://protobuf.dev/programming-guides/encoding."""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields number and value of a message's integers and byte fields, in their order; others are skipped.

    Raises:
        IndexError, ValueError: this is no message.
    """
    place = 0
    while place < len(data):
        tag, place = varint(data, place)
        kind = tag & 7
        if kind == _VARINT:
            value, place = varint(data, place)
            yield tag >> 3, value
        elif kind == _BYTES:
            size, place = varint(data, place)
            if place + size > len(data):
                raise ValueError("a field ends after the end of the file")
            yield tag >> 3, data[place : place + size]
            place += size
        elif kind in (_FIXED32, _FIXED64):
            place += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")


def byte_fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yields the byte fields alone, see `fields`."""
    for number, value in fields(data):
        if not isinstance(value, int):
            yield number, value


def varint(data: memoryview, place: int) -> tuple[int, int]:
    """The integer at a place, and the place behind it; see `fields` for errors."""
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
