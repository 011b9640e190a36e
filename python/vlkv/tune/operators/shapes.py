"""The shapes of an engine's operators, from its manifest and its decoder graph, read without an ONNX package.

In a ModelProto field 7 is the graph; in a GraphProto 1 is a node and 5 an initializer; in a NodeProto 1 is an input, 4
the operator and 5 an attribute; in an AttributeProto 1 is the name and 3 an integer; in a TensorProto 1 is a size, 2
the element type and 8 the name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlkv.errors import TuneError
from vlkv.storage import manifest as manifests
from vlkv.storage.files import hash_file, reason, show
from vlkv.storage.manifest import Manifest
from vlkv.storage.protobuf import byte_fields, fields, varint

SHORT, LONG = 256, 2048
"""Slots of the timed caches."""
MOST_WEIGHT = 48 << 20
"""Bytes of a timed weight; wider ones are cut to fewer columns."""
FIXED = 2
"""The attribute `many` of products in fixed point."""
FLOATS = {1: "float32", 10: "float16", 16: "bfloat16", 2: "codes"}
"""ONNX's numbers of element types."""


@dataclass(frozen=True)
class Product:
    """One product of the decoder: K, N, and how its weights are stored.

    `bits` is 0 for floats of `dtype`; else codes in blocks of `block` with scales of `scales`, and zeros, minimums or
    neither. `fixed` says whether the rows are in fixed point.
    """

    depth: int
    columns: int
    dtype: str
    bits: int = 0
    block: int = 0
    scales: str = "float32"
    zeros: bool = False
    minimums: bool = False
    fixed: bool = False

    @property
    def column_bytes(self) -> float:
        """Bytes of a column."""
        size = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "codes": self.bits / 8}
        return self.depth * size[self.dtype]


@dataclass(frozen=True)
class Shapes:
    """What the harnesses take from an engine. `products` are the decoder's, the one with the most bytes first."""

    query_heads: int
    kv_heads: int
    head_dim: int
    cache_dtype: str
    cache_slots: tuple[int, ...]
    products: tuple[Product, ...]
    engine: str


def read(folder: Path) -> Shapes:
    """Reads an engine directory. Raises `EngineError` or `TuneError`, which says what can't be tuned."""
    manifest = manifests.read(folder)
    _check(folder, manifest)
    text = manifest.text
    longest = max(2, min(LONG, text.max_positions))
    try:
        counted = Counter(_products((folder / "decoder.onnx").read_bytes()))
    except OSError as error:
        raise TuneError(f"{show(folder / 'decoder.onnx')}: {reason(error)}") from None
    except (IndexError, KeyError, ValueError) as error:
        raise TuneError(f"{show(folder / 'decoder.onnx')}: not an ONNX file ({reason(error)})") from None
    ordered = sorted(counted, key=lambda p: -counted[p] * p.column_bytes * p.columns)
    return Shapes(
        text.query_heads,
        text.kv_heads,
        text.head_dim,
        manifest.cache_dtype,
        tuple(sorted({min(SHORT, longest), longest})),
        tuple(ordered),
        hash_file(folder / manifests.NAME),
    )


def _check(folder: Path, manifest: Manifest) -> None:
    if manifest.kind != "engine" or manifest.backend != "onnxruntime" or manifest.operators != "native":
        raise TuneError(
            f"{show(folder)} has no native CPU operators to tune; vlkv build GRAPHS --backend onnxruntime makes such"
        )
    if manifest.cache_dtype not in ("float32", "bfloat16"):
        raise TuneError(
            f"{show(folder)} has caches of {manifest.cache_dtype}; vlkv tune takes float32 and bfloat16"
        )


def _products(data: bytes) -> Iterator[Product]:
    graph = next((value for field, value in byte_fields(memoryview(data)) if field == 7), None)
    if graph is None:
        raise ValueError("it has no graph")
    tensors: dict[str, tuple[tuple[int, ...], int]] = {}
    nodes = []
    for field, value in byte_fields(graph):
        if field == 5:
            name, sizes, kind = _tensor(value)
            tensors[name] = sizes, kind
        elif field == 1:
            nodes.append(list(byte_fields(value)))
    for facts in nodes:
        if next((bytes(part).decode() for n, part in facts if n == 4), "") == "Linear":
            inputs = [bytes(part).decode() for n, part in facts if n == 1]
            yield from _linear(dict(_attribute(part) for n, part in facts if n == 5), inputs, tensors)


def _linear(attributes: dict[str, int], inputs: list[str], tensors: dict[str, Any]) -> Iterator[Product]:
    count, bits = attributes.get("products", 1), attributes.get("bits", 0)
    for i in range(count):
        sizes, kind = tensors[inputs[1 + i]]
        if not bits:
            yield Product(sizes[1], sizes[0], FLOATS[kind])
            continue
        block = sizes[2] * 8 // bits
        scales = FLOATS[tensors[inputs[1 + count + i]][1]]
        zeros = bool(attributes.get("zeros", 0))
        least = zeros and FLOATS[tensors[inputs[1 + 2 * count + i]][1]] == "float16"
        fixed = attributes.get("many", 0) == FIXED
        yield Product(
            sizes[1] * block, sizes[0], "codes", bits, block, scales, zeros and not least, least, fixed
        )


def _tensor(data: memoryview) -> tuple[str, tuple[int, ...], int]:
    """Name, sizes and element type."""
    name, kind = "", 0
    sizes: list[int] = []
    for number, value in fields(data):
        if number == 1:
            sizes += [value] if isinstance(value, int) else _packed(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8 and not isinstance(value, int):
            name = bytes(value).decode()
    return name, tuple(sizes), kind


def _attribute(data: memoryview) -> tuple[str, int]:
    """Name and integer; 0 if its value is of another kind."""
    name, integer = "", 0
    for number, value in fields(data):
        if number == 1 and not isinstance(value, int):
            name = bytes(value).decode()
        elif number == 3 and isinstance(value, int):
            integer = value
    return name, integer


def _packed(data: memoryview) -> Iterator[int]:
    """Integers one after the other."""
    place = 0
    while place < len(data):
        number, place = varint(data, place)
        yield number
