"""Reads messages of protocol buffers without their package: https://protobuf.dev/programming-guides/encoding."""

from __future__ import annotations

from collections.abc import Iterator

_VARINT = 0
_SIZES = {1: 8, 2: 0, 5: 4}
"""Bytes of a value by its wire type; 0 where the size stands before it."""


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields number and value of a message's fields, in their order: integers, or bytes; numbers of 4 and 8 bytes too.

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
        elif kind in _SIZES:
            size, place = (_SIZES[kind], place) if _SIZES[kind] else varint(data, place)
            if place + size > len(data):
                raise ValueError("a field ends after the end of the file")
            yield tag >> 3, data[place : place + size]
            place += size
        else:
            raise ValueError(f"wire type {kind}")


def byte_fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yields the fields that are bytes alone, see `fields`."""
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
