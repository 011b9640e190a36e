"""Links or copies weight files into a directory, or writes weights in another dtype."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from vlkv.errors import EngineError
from vlkv.storage.files import clone_file, copy_file, link_or_copy, show
from vlkv.storage.manifest import BYTES
from vlkv_export.checkpoint import Tensor
from vlkv_export.checkpoint.facts import Dtype
from vlkv_export.watch import Watch
from vlkv_export.weights.header import lay_out

SAFETENSORS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
CHUNK = 1 << 24
GIB = 1 << 30
FLOAT16_END = 65520.0
"""Magnitudes from here on round to infinity in float16."""

Progress = Callable[[int], None]


def copy_weights(files: Mapping[str, Path], target: Path, watch: Watch) -> None:
    """Weight files of one's own, by the name to give them: clones where the file system has them, else copies.

    Raises:
        EngineError: the disk has too little space, which is looked at before anything is copied; or a copy failed.
    """
    left = {name: path for name, path in files.items() if not clone_file(path, target / name)}
    if not left:
        return
    size = sum(path.stat().st_size for path in left.values())
    free = shutil.disk_usage(target).free
    if size > free:
        raise EngineError(
            f"{show(target.parent)}: No space left on device: {free / GIB:.1f} GiB are free, "
            f"the weights take {size / GIB:.1f} GiB"
        )
    watch.step("copying the weights")
    watch.total(size)
    for name, path in left.items():
        copy_file(path, target / name, watch.data)


def place_weights(files: Mapping[str, Path], target: Path, watch: Watch, link: bool) -> bool:
    """Brings weight files, by the name to give them, into `target`, as clones where the file system has them.

    Else they are copies, or with `link` hard links if these do not cross file systems. Returns whether any is a link.
    Errors are those of `copy_weights`.
    """
    if not link:
        copy_weights(files, target, watch)
        return False
    linked = [link_or_copy(path, target / name) for name, path in files.items()]
    return any(linked)


def widen(bits: np.ndarray, dtype: str) -> np.ndarray:
    """Converts 16-bit floats, given as uint16, to float32; exact for every value."""
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16).astype(np.float32)


def convert(data: bytes, before: str, after: str, name: str) -> np.ndarray:
    """Converts floats of one dtype to another, as an array of its bits; rounds to nearest, ties to even.

    Raises:
        EngineError: a finite number is too large for float16.
    """
    wide = (
        np.frombuffer(data, np.float32)
        if before == "float32"
        else widen(np.frombuffer(data, np.uint16), before)
    )
    if after == "float32":
        return wide
    if after == "bfloat16":
        return wide.astype(ml_dtypes.bfloat16).view(np.uint16)
    beyond = np.isfinite(wide) & (np.abs(wide) >= FLOAT16_END)
    if beyond.any():
        largest = float(np.abs(wide[beyond]).max())
        raise EngineError(f"{name} holds {largest:.4g}, above float16's 65504; use --dtype bfloat16")
    return wide.astype(np.float16).view(np.uint16)


def write_weights(
    source: Path,
    target: Path,
    tensors: dict[str, Tensor],
    keep: set[str],
    progress: Progress = lambda n: None,
    dtype: Dtype = "float32",
) -> dict[str, Tensor]:
    """Writes tensors into one safetensors file, a chunk at a time; in `dtype`, except those named in `keep`.

    Args:
        source: the folder of the tensors' files.
        target: the file to write.
        tensors: the tensors to write, by their names in the new file.
        keep: names of tensors that keep their dtype.
        progress: called with the bytes read since the last call.
        dtype: `float32`, `float16` or `bfloat16`.

    Returns:
        The new location of each tensor.
    """
    wanted = {name: tensor.dtype if name in keep else dtype for name, tensor in tensors.items()}
    header, places = lay_out(
        (name, SAFETENSORS[after], tensor.shape, tensor.length // BYTES[tensor.dtype] * BYTES[after])
        for (name, tensor), after in zip(tensors.items(), wanted.values(), strict=True)
    )
    with target.open("wb") as out:
        out.write(header)
        for name, tensor in tensors.items():
            after = wanted[name]
            for chunk in _chunks(source / tensor.file, tensor):
                out.write(chunk if after == tensor.dtype else convert(chunk, tensor.dtype, after, name).data)
                progress(len(chunk))
    return {
        name: Tensor(name, target.name, wanted[name], tensor.shape, places[name].offset, places[name].length)
        for name, tensor in tensors.items()
    }


def _chunks(file: Path, tensor: Tensor) -> Iterable[bytes]:
    with file.open("rb") as source:
        source.seek(tensor.offset)
        for at in range(0, tensor.length, CHUNK):
            yield source.read(min(CHUNK, tensor.length - at))
