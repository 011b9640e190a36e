"""Writes a run's results: `table.md`, `summary.json` and `chart.png`, beside `answers.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from vlkv.eval.ablation import parts
from vlkv.eval.chart import available, draw_chart
from vlkv.eval.summary import Line
from vlkv.eval.table import grid, markdown
from vlkv.storage.files import write_bytes


def as_json(title: str, lines: Sequence[Line]) -> bytes:
    """One object: the title and the lines."""
    return msgspec.json.encode({"run": title, "lines": [line.to_dict() for line in lines]})


def write_report(folder: Path, title: str, lines: Sequence[Line], ablation: bool = False) -> list[Path]:
    """Writes the files, each atomically; without matplotlib there is no chart."""
    text = f"# {title}\n\n"
    if ablation:
        text += "".join(f"## {part.title}\n\n{markdown(part.lines(lines))}\n" for part in parts())
    else:
        text += f"Exact answers:\n\n{grid(lines)}\nAll of it:\n\n{markdown(lines)}"
    write_bytes(folder / "table.md", text.encode())
    write_bytes(folder / "summary.json", msgspec.json.format(as_json(title, lines), indent=2) + b"\n")
    written = [folder / "table.md", folder / "summary.json"]
    if available() and not ablation:
        beside = folder / ".chart.png"
        try:
            draw_chart(lines, title, beside)
            beside.replace(folder / "chart.png")
        finally:
            beside.unlink(missing_ok=True)
        written.append(folder / "chart.png")
    return written
