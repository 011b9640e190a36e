"""Weights on their way into a directory: linked as they are, or written once more in another dtype."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from vlkv.export.checkpoint import Tensor
from vlkv.files import link_or_copy

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
SAFETENSORS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
CHUNK = 1 << 24
ALIGNMENT = 64

Progress = Callable[[int], None]


def link_weights(source: Path, target: Path, files: Iterable[str]) -> None:
    """Hard-links the named weight files into `target`; copies them where that crosses file systems."""
    for name in files:
        link_or_copy(source / name, target / name)


def widen(bits: np.ndarray, dtype: str) -> np.ndarray:
    """16-bit floats, given as uint16, in float32; exact for every value."""
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16).astype(np.float32)


def write_float32(
    source: Path,
    target: Path,
    tensors: dict[str, Tensor],
    keep: set[str],
    progress: Progress = lambda n: None,
) -> dict[str, Tensor]:
    """Writes tensors into one safetensors file, in float32 but for those named in `keep`, a chunk at a time.

    Args:
        source: the folder that the tensors' files are in.
        target: the file to write.
        tensors: what to write, by the name to give it.
        keep: names whose dtype stays.
        progress: told the bytes read since the last call.

    Returns:
        Where each tensor lies now.
    """
    placed: dict[str, Tensor] = {}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        dtype = tensor.dtype if name in keep else "float32"
        length = tensor.length // BYTES[tensor.dtype] * BYTES[dtype]
        header[name] = {
            "dtype": SAFETENSORS[dtype],
            "shape": tensor.shape,
            "data_offsets": [offset, offset + length],
        }
        placed[name] = Tensor(name, target.name, dtype, tensor.shape, offset, length)
        offset += length
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    with target.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            for chunk in _chunks(source / tensor.file, tensor):
                same = placed[name].dtype == tensor.dtype
                out.write(chunk if same else widen(np.frombuffer(chunk, np.uint16), tensor.dtype).data)
                progress(len(chunk))
    start = 8 + len(text)
    return {
        n: Tensor(t.name, t.file, t.dtype, t.shape, t.offset + start, t.length) for n, t in placed.items()
    }


def _chunks(file: Path, tensor: Tensor) -> Iterable[bytes]:
    with file.open("rb") as source:
        source.seek(tensor.offset)
        for at in range(0, tensor.length, CHUNK):
            yield source.read(min(CHUNK, tensor.length - at))
