"""Weights in 8 bits: each row in blocks, each block a scale and whole numbers, symmetric about zero."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlkv.errors import EngineError
from vlkv.storage.manifest import BYTES
from vlkv_export.checkpoint import Tensor
from vlkv_export.passes.blocked_weights import matrices, use_blocked_weights
from vlkv_export.watch import Watch
from vlkv_export.weights.convert import stored
from vlkv_export.weights.files import ALIGNMENT, CHUNK, Progress, widen

FILE = "weights.int8.safetensors"
LARGEST = 127
ZERO = 128
"""The code of 0."""

Codes = NDArray[np.uint8]
Scales = NDArray[np.float32]


def code(source: Path, folder: Path, models: dict[str, ir.Model], watch: Watch) -> int:
    """Code the matrices of the decoder in 8 bits; see `registry.Format`.

    Raises:
        EngineError: a weight is not finite.
    """
    decoder = models["decoder"]
    tensors = stored(matrices(decoder).values())
    watch.step("rounding the text model's weights to 8 bits")
    watch.total(sum(tensor.length for tensor in tensors.values()))
    return use_blocked_weights(decoder, write_int8(source, folder / FILE, tensors, watch.data))


def block_of(columns: int) -> int:
    """Numbers that share a scale: 128, or 32 where that does not divide the row."""
    return 128 if columns % 128 == 0 else 32


def quantize(rows: NDArray[np.float32], block: int) -> tuple[Codes, Scales]:
    """Rounds rows `[N, K]` to 8 bits.

    Returns:
        Codes `[N, ceil(K / block), block]`, a number being (code - 128) * scale, within half a scale of what it was;
        past K they are 128. Scales `[N, ceil(K / block)]`: the block's largest magnitude / 127.
    """
    count, columns = rows.shape
    blocks = -(-columns // block)
    padded = np.zeros((count, blocks * block), np.float32)
    padded[:, :columns] = rows
    numbers = padded.reshape(count, blocks, block)
    scales = np.abs(numbers).max(axis=2) / np.float32(LARGEST)
    steps = numbers / np.where(scales > 0, scales, 1)[..., np.newaxis]
    codes = np.rint(steps).clip(-LARGEST, LARGEST).astype(np.int16) + ZERO
    return codes.astype(np.uint8), scales.astype(np.float32)


def write_int8(
    source: Path, target: Path, tensors: dict[str, Tensor], progress: Progress = lambda n: None
) -> dict[str, tuple[ir.TensorProtocol, ir.TensorProtocol]]:
    """Writes matrices `[N, K]` into one safetensors file in 8 bits, some rows at a time.

    Args:
        source: the folder that the tensors' files are in.
        target: the file to write.
        tensors: the matrices by name.
        progress: told the bytes read since the last call.

    Returns:
        By name the codes and the scales, as references into the file; see `quantize`.

    Raises:
        EngineError: a weight is not finite.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        rows, columns = tensor.shape
        block = block_of(columns)
        blocks = -(-columns // block)
        kinds = (("codes", "U8", [rows, blocks, block], 1), ("scales", "F32", [rows, blocks], 4))
        for kind, dtype, shape, width in kinds:
            size = int(np.prod(shape)) * width
            header[f"{name}.{kind}"] = {
                "dtype": dtype,
                "shape": shape,
                "data_offsets": [offset, offset + size],
            }
            offset += size
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    with target.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            scales = []
            for part in _rows(source / tensor.file, tensor, progress):
                if not np.isfinite(part).all():
                    raise EngineError(f"{name} has weights that are not finite; int8 has no code for them")
                codes, scale = quantize(part, block_of(part.shape[1]))
                out.write(codes.data)
                scales.append(scale)
            out.write(np.concatenate(scales).data)
    start = 8 + len(text)
    placed = {
        key: _external(target.name, key, entry, start) for key, entry in header.items() if "dtype" in entry
    }
    return {name: (placed[f"{name}.codes"], placed[f"{name}.scales"]) for name in tensors}


def _rows(file: Path, tensor: Tensor, progress: Progress) -> Iterator[NDArray[np.float32]]:
    """A matrix in float32, as many rows at a time as a chunk holds."""
    count, columns = tensor.shape
    width = BYTES[tensor.dtype]
    step = max(1, CHUNK // (columns * width))
    with file.open("rb") as data:
        data.seek(tensor.offset)
        for first in range(0, count, step):
            raw = data.read(min(step, count - first) * columns * width)
            wide = (
                np.frombuffer(raw, np.float32)
                if width == 4
                else widen(np.frombuffer(raw, np.uint16), tensor.dtype)
            )
            yield wide.reshape(-1, columns)
            progress(len(raw))


def _external(file: str, name: str, entry: dict[str, Any], start: int) -> ir.ExternalTensor:
    begin, end = entry["data_offsets"]
    dtype = ir.DataType.UINT8 if entry["dtype"] == "U8" else ir.DataType.FLOAT
    return ir.ExternalTensor(
        file, start + begin, end - begin, dtype, shape=ir.Shape(entry["shape"]), name=name
    )
