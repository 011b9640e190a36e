"""Writes the files of an inspection: `index.html` and PNGs."""

from __future__ import annotations

from pathlib import Path

from vlkv.errors import EvalError
from vlkv.eval.inspection import Inspection
from vlkv.eval.page import page, png
from vlkv.eval.pictures import bars, kept_sheet, layer_sheet
from vlkv.storage.files import reason, show, write_bytes


def write(found: Inspection, folder: Path) -> list[Path]:
    """Writes the page, `bars.png`, and with pictures `kept.png` and one `layer-N.png` per layer, each atomically."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvalError(f"{show(folder)}: {reason(error)}") from error
    contents = {"index.html": page(found).encode(), "bars.png": png(bars(found))}
    if found.panes:
        contents["kept.png"] = png(kept_sheet(found))
        width = len(str(len(found.kept) - 1))
        for layer in range(len(found.kept)):
            contents[f"layer-{layer:0{width}d}.png"] = png(layer_sheet(found, layer))
    written = []
    for name, content in contents.items():
        write_bytes(folder / name, content)
        written.append(folder / name)
    return written
