"""Matrices in codes as floats, for engines whose products have no codes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from vlkv.storage.files import link_or_copy
from vlkv_export.watch import Watch
from vlkv_export.weights.coded import find_coded, widen_codes

FILE = "matrices.float32.safetensors"
FOLDER = "widened"


@contextmanager
def widened(source: Path, folder: Path, models: dict[str, ir.Model], watch: Watch) -> Iterator[Path]:
    """The folder that the graphs read their weights from, none of them in codes any more.

    That is `source` where nothing was; else a folder of links inside `folder`, which goes at the end.
    """
    if not any(find_coded(model) for model in models.values()):
        yield source
        return
    beside = folder / FOLDER
    beside.mkdir()
    try:
        for path in source.iterdir():
            if path.is_file():
                link_or_copy(path, beside / path.name)
        watch.step("widening the matrices to float32")
        widen_codes(source, beside / FILE, models)
        yield beside
    finally:
        shutil.rmtree(beside)
