"""PNG charts of a benchmark's record; matplotlib (`vlkv[bench]`) is imported when a chart is drawn."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from vlkv.errors import BenchError

CHARTS = (
    ("token.png", "token_ms", "ms a token"),
    ("first_token.png", "first_token_ms", "ms to the first token"),
    ("whole.png", "whole_ms", "ms for the whole answer"),
    ("cache.png", "cache_bytes", "bytes of the cache"),
)


def draw(found: dict[str, Any]) -> dict[str, bytes]:
    """Draws PNG files, by name: one line per arm over prompt tokens, one panel per batch size; byte floors are dashed.

    If there are several lengths of answers, the longest is shown.

    Raises:
        BenchError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BenchError(f"charts need the packages of vlkv[bench]: {error}") from None
    files = {}
    longest = max(row["new_tokens"] for row in found["rows"])
    shown = [row for row in found["rows"] if row["new_tokens"] == longest]
    batches = sorted({row["batch"] for row in shown})
    for name, field, axis in CHARTS:
        figure = Figure(figsize=(5.5 * len(batches), 4), layout="constrained")
        FigureCanvasAgg(figure)
        for panel, batch in enumerate(batches, 1):
            plot = figure.add_subplot(1, len(batches), panel)
            rows = [row for row in shown if row["batch"] == batch and row[field] is not None]
            for number, arm in enumerate(dict.fromkeys(row["arm"] for row in rows)):
                mine = sorted(
                    (row for row in rows if row["arm"] == arm), key=lambda row: row["prompt_tokens"]
                )
                lengths = [row["prompt_tokens"] for row in mine]
                color = f"C{number % 10}"
                plot.plot(lengths, [row[field] for row in mine], "o-", color=color, label=arm)
                if field == "token_ms" and all(row["floor_ms"] for row in mine):
                    floors = [row["floor_ms"] for row in mine]
                    plot.plot(lengths, floors, "--", color=color, label=f"{arm}: byte floor")
            plot.set(
                title=f"batch {batch}", xlabel="prompt tokens", ylabel=axis, xscale="log", ylim=(0, None)
            )
            if rows:
                plot.legend(fontsize="small")
        out = BytesIO()
        figure.savefig(out, format="png", dpi=120)
        files[name] = out.getvalue()
    return files
