"""The bytes of the weights in an ONNX file, read from its protocol buffer without an ONNX package.

Field 7 of a ModelProto is the graph; field 5 of a GraphProto holds initializers; in a TensorProto, field 9 is the raw
data and field 13 holds pairs of texts with the location of external data.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vlkv.errors import EngineError
from vlkv.storage.files import reason, show

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GRAPH, _INITIALIZER, _RAW, _EXTERNAL = 7, 5, 9, 13


def weight_bytes(path: Path) -> int:
    """Bytes of all initializers; each range of an external file counts once. Raises `EngineError` for other files."""
    try:
        data = memoryview(path.read_bytes())
        inline, places = 0, {}
        for model_field, graph in _fields(data):
            if model_field != _GRAPH:
                continue
            for graph_field, tensor in _fields(graph):
                if graph_field != _INITIALIZER:
                    continue
                entries = {}
                for field, value in _fields(tensor):
                    if field == _RAW:
                        inline += len(value)
                    elif field == _EXTERNAL:
                        pair = {key: bytes(text).decode() for key, text in _fields(value)}
                        entries[pair.get(1, "")] = pair.get(2, "")
                if entries:
                    places[entries.get("location", ""), entries.get("offset", "0")] = int(entries["length"])
        return inline + sum(places.values())
    except OSError as error:
        raise EngineError(f"{show(path)}: {reason(error)}") from None
    except (IndexError, KeyError, ValueError) as error:
        raise EngineError(f"{show(path)}: not an ONNX file ({reason(error)})") from None


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yields number and contents of a message's byte fields; numeric fields are skipped."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == _VARINT:
            _, place = _varint(data, place)
        elif kind == _BYTES:
            size, place = _varint(data, place)
            if place + size > len(data):
                raise ValueError("a field ends after the end of the file")
            yield tag >> 3, data[place : place + size]
            place += size
        elif kind in (_FIXED32, _FIXED64):
            place += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")


def _varint(data: memoryview, place: int) -> tuple[int, int]:
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
