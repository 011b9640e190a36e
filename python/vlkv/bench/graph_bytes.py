"""The bytes of the weights in an ONNX file, read from its protocol buffer without an ONNX package.

Field 7 of a ModelProto is the graph; field 5 of a GraphProto holds initializers; in a TensorProto, field 9 is the raw
data and field 13 holds pairs of texts with the location of external data.
"""

from __future__ import annotations

from pathlib import Path

from vlkv.errors import EngineError
from vlkv.storage.files import reason, show
from vlkv.storage.protobuf import byte_fields

_GRAPH, _INITIALIZER, _RAW, _EXTERNAL = 7, 5, 9, 13


def weight_bytes(path: Path) -> int:
    """Bytes of all initializers; each range of an external file counts once. Raises `EngineError` for other files."""
    try:
        data = memoryview(path.read_bytes())
        inline, places = 0, {}
        for model_field, graph in byte_fields(data):
            if model_field != _GRAPH:
                continue
            for graph_field, tensor in byte_fields(graph):
                if graph_field != _INITIALIZER:
                    continue
                entries = {}
                for field, value in byte_fields(tensor):
                    if field == _RAW:
                        inline += len(value)
                    elif field == _EXTERNAL:
                        pair = {key: bytes(text).decode() for key, text in byte_fields(value)}
                        entries[pair.get(1, "")] = pair.get(2, "")
                if entries:
                    places[entries.get("location", ""), entries.get("offset", "0")] = int(entries["length"])
        return inline + sum(places.values())
    except OSError as error:
        raise EngineError(f"{show(path)}: {reason(error)}") from None
    except (IndexError, KeyError, ValueError) as error:
        raise EngineError(f"{show(path)}: not an ONNX file ({reason(error)})") from None
