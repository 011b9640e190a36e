"""A checkpoint's coded matrices, written once more in the layout that `vlkv.native.Linear` reads; nothing is rounded.

AWQ and GPTQ hold eight codes of 4 bits in an int32. AWQ's words go along the outputs, GPTQ's along the inputs.
N outputs, K inputs, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkv.errors import CheckpointError
from vlkv_export.checkpoint.facts import Coded, Placed, Stored, Tensor
from vlkv_export.weights.files import widen
from vlkv_export.weights.header import lay_out

FILE = "matrices.codes.safetensors"
BLOCK = 32
"""`Linear`'s blocks are multiples of this."""
ZERO = 128
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring outputs each code of an AWQ word belongs to, from the lowest bits on."""
CHUNK = 1 << 22
"""Codes that are unpacked at a time."""
DTYPES = {"I8": np.int8, "I32": np.int32, "F32": np.float32, "F16": np.uint16, "BF16": np.uint16}
WIDTHS = {"U8": 1, "F16": 2, "F32": 4}

Array = NDArray[Any]


def repack(
    source: Path, folder: Path, coded: Mapping[str, Coded], report: Callable[[str], None] = lambda step: None
) -> tuple[dict[str, Placed], dict[str, Tensor]]:
    """Writes `FILE` into `folder`, some outputs at a time.

    Args:
        source: the checkpoint's folder.
        folder: a graph directory.
        coded: the matrices by canonical name.
        report: told of each matrix before it is written.

    Returns:
        Where each lies. Those whose groups are no multiple of `BLOCK`, or do not divide the inputs, are written as
        float32, and come as the second.

    Raises:
        CheckpointError: a scale is not finite, or `g_idx` is no order of groups of one size.
    """
    if not coded:
        return {}, {}
    header, places = lay_out(
        (_join(name, part), dtype, shape, prod(shape) * WIDTHS[dtype])
        for name, matrix in coded.items()
        for part, (dtype, shape) in _layout(matrix).items()
    )
    orders: dict[str, NDArray[np.int64] | None] = {}
    with (folder / FILE).open("wb") as out:
        out.write(header)
        for number, (name, matrix) in enumerate(coded.items(), 1):
            report(f"repacking matrix {number} of {len(coded)}")
            reader = _Reader(source, matrix)
            orders[name] = reader.order
            parts = _layout(matrix)
            for codes, first, last in reader.chunks():
                wide = "" in parts
                rows = reader.floats(codes, first, last) if wide else reader.packed(codes)
                out.write(np.ascontiguousarray(rows).data)
            if "scales" in parts:
                scales = reader.scales
                out.write((scales if scales.dtype == np.uint16 else scales.astype(np.float32)).data)
            if "zeros" in parts:
                out.write(np.ascontiguousarray(reader.zeros).data)

    def stored(name: str, part: str) -> Stored:
        place = places[_join(name, part)]
        return Stored(FILE, place.dtype, tuple(place.shape), place.offset, place.length)

    placed: dict[str, Placed] = {}
    floats: dict[str, Tensor] = {}
    for name, matrix in coded.items():
        parts = _layout(matrix)
        if "" in parts:
            whole = stored(name, "")
            floats[name] = Tensor(name, FILE, "float32", whole.shape, whole.offset, whole.length)
            continue
        zeros = stored(name, "zeros") if "zeros" in parts else None
        kept = (stored(name, "codes"), stored(name, "scales"), zeros)
        placed[name] = Placed(matrix.shape, 8 if zeros is None else 4, *kept, orders[name])
    return placed, floats


def _join(name: str, part: str) -> str:
    return f"{name}.{part}" if part else name


def _layout(matrix: Coded) -> dict[str, tuple[str, tuple[int, ...]]]:
    """By part dtype and shape; the part without a name is the whole matrix in float32."""
    (outputs, inputs), method = matrix.shape, matrix.scheme.method
    group = matrix.scheme.group or inputs
    if inputs % group or group % BLOCK:
        return {"": ("F32", (outputs, inputs))}
    groups = (outputs, inputs // group)
    scale = matrix.parts["weight_scale" if method == "int8" else "scales"].dtype
    scales = ("F16" if scale == "F16" else "F32", groups)
    if method == "int8":
        return {"codes": ("U8", (outputs, inputs)), "scales": scales}
    return {"codes": ("U8", (outputs, inputs // 2)), "scales": scales, "zeros": ("U8", groups)}


class _Reader:
    """A coded matrix, unpacked some outputs at a time.

    Attributes:
        scales: `[N, G]`, float16 as its bits, or float32.
        zeros: `[N, G]` uint8.
        groups: `[K]`, the group of each input.
        order: `[K]`, the inputs by group; None where they are in that order.
    """

    def __init__(self, source: Path, matrix: Coded) -> None:
        self.matrix = matrix
        self._source = source
        method, (outputs, inputs) = matrix.scheme.method, matrix.shape
        group = matrix.scheme.group or inputs
        self.groups: NDArray[np.int64] = np.arange(inputs, dtype=np.int64) // group
        self.order: NDArray[np.int64] | None = None
        if method == "int8":
            self._codes = self._map("weight")
            scales = np.asarray(self._map("weight_scale")).reshape(-1)
            scales = scales.reshape(outputs, -1) if scales.size >= outputs else np.tile(scales, (outputs, 1))
            self.zeros: NDArray[np.uint8] = np.full(scales.shape, ZERO, np.uint8)
            dtype = matrix.parts["weight_scale"].dtype
        else:
            self._codes = self._map("qweight")
            scales = np.asarray(self._map("scales")).T
            dtype = matrix.parts["scales"].dtype
            zeros = _nibbles(np.asarray(self._map("qzeros")))
            if method == "awq":
                zeros = _in_order(zeros)
            stored = zeros.reshape(len(zeros), -1) + np.uint8(matrix.scheme.offset)
            self.zeros = np.ascontiguousarray(stored.T)
            self._order(group)
        if dtype == "BF16":
            scales = widen(np.ascontiguousarray(scales), "bfloat16")
        self.scales: Array = np.ascontiguousarray(scales)
        self._wide: NDArray[np.float32] = (
            widen(self.scales, "float16") if self.scales.dtype == np.uint16 else self.scales
        )
        if not np.isfinite(self._wide).all():
            raise CheckpointError(f"{matrix.name} has scales that are not finite")

    def _order(self, group: int) -> None:
        """Reads `g_idx`, where there is one: the group of each input, of act-order any."""
        if "g_idx" not in self.matrix.parts:
            return
        given = np.asarray(self._map("g_idx")).astype(np.int64)
        if (given == self.groups).all():
            return
        whole = np.bincount(self.groups)
        if (
            given.min() < 0
            or given.max() >= len(whole)
            or (np.bincount(given, minlength=len(whole)) != whole).any()
        ):
            raise CheckpointError(f"{self.matrix.name}: g_idx is no order of groups of {group} inputs")
        self.groups, self.order = given, np.argsort(given, kind="stable")

    def chunks(self) -> Iterator[tuple[NDArray[np.uint8], int, int]]:
        """Codes `[n, K]` of some outputs, and which: from the first to before the last."""
        (outputs, inputs), method = self.matrix.shape, self.matrix.scheme.method
        step = max(8, CHUNK // inputs // 8 * 8)
        for first in range(0, outputs, step):
            last = min(first + step, outputs)
            if method == "int8":
                whole: NDArray[Any] = np.asarray(self._codes[first:last])
                codes = (whole.astype(np.int16) + ZERO).astype(np.uint8)
            elif method == "awq":
                words = _in_order(_nibbles(np.asarray(self._codes[:, first // 8 : last // 8])))
                codes = np.ascontiguousarray(words.reshape(inputs, -1).T)
            else:
                words = _nibbles(np.asarray(self._codes[:, first:last]))
                codes = np.ascontiguousarray(words.transpose(1, 0, 2).reshape(last - first, inputs))
            yield codes, first, last

    def packed(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Codes `[n, K]` by group, those of 4 bits two a byte."""
        codes = codes if self.order is None else codes[:, self.order]
        if self.matrix.scheme.method == "int8":
            return codes
        pairs: NDArray[np.uint8] = (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)
        return pairs

    def floats(self, codes: NDArray[np.uint8], first: int, last: int) -> NDArray[np.float32]:
        """Codes `[n, K]` of outputs `[first, last)` in float32, each product rounded once."""
        scales, zeros = self._wide[first:last], self.zeros[first:last].astype(np.float32)
        wide: NDArray[np.float32] = (codes.astype(np.float32) - zeros[:, self.groups]) * scales[
            :, self.groups
        ]
        return wide

    def _map(self, part: str) -> Array:
        stored = self.matrix.parts[part]
        path = self._source / stored.file
        return np.memmap(path, DTYPES[stored.dtype], "r", stored.offset, stored.shape or (1,))


def _nibbles(words: Array) -> NDArray[np.uint8]:
    """The eight codes of each int32, from the lowest bits on, on a new last axis."""
    unsigned = np.ascontiguousarray(words).view(np.uint32)[..., np.newaxis]
    found: NDArray[np.uint8] = (unsigned >> np.arange(0, 32, 4, dtype=np.uint32) & 15).astype(np.uint8)
    return found


def _in_order(nibbles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return nibbles[..., np.argsort(AWQ_ORDER)]
