"""Adapters merged into matrices, written once more in the dtype that they have; some rows at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from vlkv.errors import CheckpointError
from vlkv.storage.manifest import BYTES
from vlkv_export.checkpoint.facts import Merge, Tensor
from vlkv_export.weights.files import CHUNK, SAFETENSORS, widen
from vlkv_export.weights.header import lay_out

FILE = "weights.merged.safetensors"


def merge(
    source: Path, folder: Path, tensors: Mapping[str, Tensor], merges: Mapping[str, Merge]
) -> dict[str, Tensor]:
    """Writes W + scale * B A of each matrix into `FILE`, computed in float32 and rounded to W's dtype.

    Args:
        source: the checkpoint's folder.
        folder: a graph directory.
        tensors: by canonical name.
        merges: what is added to which of them.

    Returns:
        Where the merged ones lie, by name.

    Raises:
        CheckpointError: a sum is not finite.
    """
    if not merges:
        return {}
    merged = {name: tensors[name] for name in merges}
    header, places = lay_out(
        (name, SAFETENSORS[tensor.dtype], tensor.shape, tensor.length) for name, tensor in merged.items()
    )
    with (folder / FILE).open("wb") as out:
        out.write(header)
        for name, part in merges.items():
            tensor = tensors[name]
            first = _floats(part.folder, part.a)
            second = _floats(part.folder, part.b) * np.float32(part.scale)
            step = max(1, CHUNK // (4 * tensor.shape[1]))
            for row in range(0, tensor.shape[0], step):
                with np.errstate(all="ignore"):
                    added = second[row : row + step] @ first
                    rows = (_floats(source, tensor, row, step) + added).astype(np.float32)
                if not np.isfinite(rows).all():
                    raise CheckpointError(f"{name} with its adapter is not finite")
                out.write(_narrowed(rows, tensor.dtype).data)
    return {name: replace(merged[name], name=name, file=FILE, offset=places[name].offset) for name in merges}


def _floats(folder: Path, tensor: Tensor, first: int = 0, count: int | None = None) -> NDArray[np.float32]:
    """Rows of a matrix in float32."""
    width = np.float32 if BYTES[tensor.dtype] == 4 else np.uint16
    whole = np.memmap(folder / tensor.file, width, "r", tensor.offset, tensor.shape)
    rows = np.asarray(whole[first : None if count is None else first + count])
    return rows if rows.dtype == np.float32 else widen(rows, tensor.dtype)


def _narrowed(rows: NDArray[np.float32], dtype: str) -> NDArray[np.generic]:
    if dtype == "float32":
        return np.ascontiguousarray(rows)
    with np.errstate(over="ignore"):
        narrow = rows.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
    return np.ascontiguousarray(narrow).view(np.uint16)
