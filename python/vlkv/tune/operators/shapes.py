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

SHORT, LONG = 256, 2048
"""Slots of the timed caches."""
MOST_WEIGHT = 48 << 20
"""Bytes of a timed weight; wider ones are cut to fewer columns."""
FLOATS = {1: "float32", 10: "float16", 16: "bfloat16", 2: "codes"}
"""ONNX's numbers of element types."""


@dataclass(frozen=True)
class Product:
    """One product of the decoder: K, N, and how its weights are stored.

    `bits` is 0 for floats of `dtype`; else codes in blocks of `block` with scales of `scales`, and zeros or none.
    """

    depth: int
    columns: int
    dtype: str
    bits: int = 0
    block: int = 0
    scales: str = "float32"
    zeros: bool = False

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
            f"{show(folder)} has no native CPU operators to tune; vlkv build GRAPHS --target onnxruntime makes such"
        )
    if manifest.cache_dtype not in ("float32", "bfloat16"):
        raise TuneError(
            f"{show(folder)} has caches of {manifest.cache_dtype}; vlkv tune takes float32 and bfloat16"
        )


def _products(data: bytes) -> Iterator[Product]:
    graph = next(value for field, value in _fields(memoryview(data)) if field == 7)
    tensors: dict[str, tuple[tuple[int, ...], int]] = {}
    nodes = []
    for field, value in _fields(graph):
        if field == 5:
            facts = list(_fields(value))
            sizes = tuple(size for n, part in facts if n == 1 for size in _numbers(part))
            name = next(bytes(part).decode() for n, part in facts if n == 8)
            tensors[name] = sizes, next(part for n, part in facts if n == 2)
        elif field == 1:
            nodes.append(value)
    for node in nodes:
        facts = list(_fields(node))
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
        if zeros and tensors[inputs[1 + 2 * count + i]][1] == 10:
            continue  # minimums, which the harness doesn't make
        yield Product(sizes[1] * block, sizes[0], "codes", bits, block, scales, zeros)


def _attribute(data: memoryview) -> tuple[str, int]:
    facts = dict(_fields(data))
    return bytes(facts[1]).decode(), facts.get(3, 0)


def _numbers(part: Any) -> Iterator[int]:
    """Sizes stand one by one, or packed into bytes."""
    if isinstance(part, int):
        yield part
        return
    place = 0
    while place < len(part):
        number, place = _varint(part, place)
        yield number


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yields number and value of a message's integers and byte fields."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == 0:
            number, place = _varint(data, place)
            yield tag >> 3, number
        elif kind == 2:
            size, place = _varint(data, place)
            if place + size > len(data):
                raise ValueError("a field ends after the end of the file")
            yield tag >> 3, data[place : place + size]
            place += size
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
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
