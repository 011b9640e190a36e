"""Writes quantised matrices, a few rows at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlkv.errors import EngineError
from vlkv.storage.manifest import BYTES
from vlkv_export.checkpoint import Tensor
from vlkv_export.weights.files import CHUNK, Progress, widen
from vlkv_export.weights.header import Place, lay_out
from vlkv_export.weights.spec import Format, Parts

THREADS = 4
"""The most threads that encode; each holds a piece of some 100 MB."""
WIDTHS = {"U8": 1, "F16": 2, "F32": 4}
TYPES = {"U8": ir.DataType.UINT8, "F16": ir.DataType.FLOAT16, "F32": ir.DataType.FLOAT}


def write_codes(
    source: Path,
    target: Path,
    tensors: Mapping[str, tuple[Tensor, Format]],
    progress: Progress = lambda n: None,
) -> dict[str, tuple[ir.TensorProtocol, ...]]:
    """Writes matrices `[N, K]` into one safetensors file.

    Args:
        source: the folder of the tensors' files.
        target: the file to write.
        tensors: by name the matrix and its format.
        progress: called with the bytes read since the last call.

    Returns:
        By name the parts in the order of the format's layout, as references into the file.

    Raises:
        EngineError: a weight is not finite.
    """
    header, places = lay_out(
        (f"{name}.{kind}", dtype, shape, prod(shape) * WIDTHS[dtype])
        for name, (tensor, form) in tensors.items()
        for kind, (dtype, shape) in _layout(form, tensor).items()
    )
    with target.open("wb") as out:
        out.write(header)
        for name, (tensor, form) in tensors.items():
            small: list[tuple[NDArray[Any], ...]] = []
            for codes, *rest in _encoded(name, form, _rows(source / tensor.file, tensor, progress)):
                out.write(np.ascontiguousarray(codes).data)
                small.append(tuple(rest))
            for parts in zip(*small, strict=True):
                out.write(np.ascontiguousarray(np.concatenate(parts)).data)
    return {
        name: tuple(
            _external(target.name, f"{name}.{kind}", places[f"{name}.{kind}"])
            for kind in _layout(form, tensor)
        )
        for name, (tensor, form) in tensors.items()
    }


def _encoded(name: str, form: Format, pieces: Iterator[NDArray[np.float32]]) -> Iterator[Parts]:
    """Yields the parts of each piece of rows, in order; up to `THREADS` pieces are encoded at a time."""

    def encode(rows: NDArray[np.float32]) -> Parts:
        if not np.isfinite(rows).all():
            raise EngineError(f"{name} has weights that are not finite; {form.name} can't represent them")
        assert form.encode is not None
        return form.encode(rows)

    threads = min(THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        while several := list(islice(pieces, threads)):
            yield from pool.map(encode, several)


def _layout(form: Format, tensor: Tensor) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    rows, columns = tensor.shape
    assert form.layout is not None
    return form.layout(rows, columns)


def _rows(file: Path, tensor: Tensor, progress: Progress) -> Iterator[NDArray[np.float32]]:
    """Yields a matrix in float32, as many rows at a time as fit a chunk."""
    count, columns = tensor.shape
    width = BYTES[tensor.dtype]
    step = max(1, CHUNK // (columns * width))
    with file.open("rb") as data:
        data.seek(tensor.offset)
        for first in range(0, count, step):
            raw = data.read(min(step, count - first) * columns * width)
            wide: NDArray[np.float32] = (
                np.frombuffer(raw, np.float32)
                if width == 4
                else widen(np.frombuffer(raw, np.uint16), tensor.dtype)
            )
            yield wide.reshape(-1, columns)
            progress(len(raw))


def _external(file: str, name: str, place: Place) -> ir.ExternalTensor:
    shape = ir.Shape(place.shape)
    return ir.ExternalTensor(file, place.offset, place.length, TYPES[place.dtype], shape=shape, name=name)
