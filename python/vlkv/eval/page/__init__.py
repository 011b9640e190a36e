"""The page of an inspection: one HTML file that includes style, script, pictures and data, and fetches nothing."""

from __future__ import annotations

import base64
from importlib.metadata import version
from importlib.resources import files
from io import BytesIO
from typing import Any

import msgspec
import numpy as np
from PIL.Image import Image

from vlkv.eval.inspection import Inspection, Pane
from vlkv.generation.result import Result


def page(found: Inspection) -> str:
    """The page's HTML. Prompt and answers are embedded as data, never as markup."""
    here = files(__package__)
    text = here.joinpath("page.html").read_text(encoding="utf-8")
    data = msgspec.json.encode(page_data(found)).decode()
    for less, safe in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        data = data.replace(less, safe)
    parts = {
        "/*STYLE*/": here.joinpath("page.css").read_text(encoding="utf-8"),
        "/*SCRIPT*/": here.joinpath("page.js").read_text(encoding="utf-8"),
        "/*DATA*/": data,
    }
    for place, content in parts.items():
        before, after = text.split(place)
        text = before + content + after
    return text


def page_data(found: Inspection) -> dict[str, Any]:
    """The script's data: `kept` bits and `scores` float32, both `[L, Hkv, S]` in base64."""
    layers, heads, tokens = found.kept.shape
    facts = [f"{tokens:,} prompt tokens", f"{layers} layers", f"{heads} KV heads"]
    return {
        "question": found.question,
        "policy": found.policy,
        "budget": found.budget,
        "layers": layers,
        "heads": heads,
        "tokens": tokens,
        "observed": bool(found.scores.any()),
        "full": _answer(found.full),
        "small": _answer(found.small),
        "counts": found.small.kept_tokens,
        "sparsity": found.small.sparsity,
        "kept": _text(np.packbits(found.kept).tobytes()),
        "scores": _text(found.scores.astype("<f4").tobytes()),
        "panes": [_pane(pane) for pane in found.panes],
        "apart": [{"name": name, "places": places.tolist()} for name, places in found.apart.items()],
        "words": found.words,
        "footer": f"{', '.join(facts)}. Made by vlkv {version('vlkv')}.",
    }


def _pane(pane: Pane) -> dict[str, Any]:
    rows, columns = pane.patches.shape
    picture = f"data:image/png;base64,{_text(png(pane.picture))}"
    return {
        "rows": rows,
        "columns": columns,
        "patches": pane.patches.reshape(-1).tolist(),
        "name": pane.name,
        "down": pane.down,
        "across": pane.across,
        "picture": picture,
    }


def png(picture: Image) -> bytes:
    """The picture as a PNG file."""
    file = BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _answer(result: Result) -> dict[str, Any]:
    return {"text": result.text, "kept": sum(result.kept_tokens), "size": size(result.cache_bytes)}


def size(count: int) -> str:
    """Bytes as a readable text."""
    number, units = float(count), ["bytes", "KiB", "MiB", "GiB"]
    while number >= 1024 and len(units) > 1:
        number /= 1024
        units.pop(0)
    return f"{number:.3g} {units[0]}" if units[0] != "bytes" else f"{count} bytes"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
