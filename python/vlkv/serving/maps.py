"""Maps of the kept patches of a request's pictures, for clients that draw them over the pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlkv.generation.result import Result
from vlkv.inputs.layouts import Layout
from vlkv.storage.image_facts import AnyRes, ImageFacts, Rows
from vlkv.storage.manifest import Manifest


def kept_maps(
    result: Result, pictures: Sequence[tuple[int, Layout]], manifest: Manifest
) -> list[dict[str, object]]:
    """One map for each rectangle that the tokens of a picture or a video's frame form.

    LLaVA-NeXT's and OneVision's pictures have two: first the grid of tiles, then the whole picture in one tile.

    Args:
        result: the answer.
        pictures: the prompt position of each picture's first token, and its layout.
        manifest: the engine's.

    Returns:
        Records of `picture`, its number among pictures and frames from 0; `rows` and `columns`; `share`, the share of
        layers and KV heads that keep each patch, row by row; and `box`, see `_box`, or `fit`, see `_fit`.
    """
    share = np.ones(result.prompt_tokens)
    if result.positions is not None:
        length = result.prompt_tokens
        layers = [np.bincount(layer.ravel(), minlength=length) / len(layer) for layer in result.positions]
        share = np.mean(layers, axis=0)
    maps: list[dict[str, object]] = []
    for number, (first, layout) in enumerate(pictures):
        video = manifest.video
        facts = manifest.image if layout.frame is None or video is None else video.frame
        for view in reversed(layout.views):
            if not view.tokens.size:
                continue
            rows, columns = view.tokens.shape
            kept = [round(float(part), 3) for part in share[first + view.tokens].reshape(-1)]
            place = {"fit": _fit(layout, facts)} if view.box is None else {"box": _box(view.box, layout)}
            maps.append({"picture": number, "rows": rows, "columns": columns, "share": kept, **place})
    return maps


def _box(box: tuple[int, int, int, int], layout: Layout) -> list[float]:
    """Left, top, right and bottom of a view, as shares of the picture's width and height.

    They are under 0 or over 1 where the view shows padding around the picture.
    """
    found = []
    for place, (tiles, side, scaled) in enumerate(
        zip((layout.grid[1], layout.grid[0]), reversed(layout.tiles), layout.scaled, strict=True)
    ):
        before = (tiles * side - scaled) // 2
        found.append([round((box[place + 2 * end] - before) / scaled, 5) for end in (0, 1)])
    (left, right), (top, bottom) = found
    return [left, top, right, bottom]


def _fit(layout: Layout, facts: ImageFacts) -> str:
    """How the whole picture became one tile: `stretch`, `pad` to a square, or `crop` to the square in the middle."""
    if isinstance(facts.rule, Rows):
        return "stretch"
    if facts.pad_to_square or (isinstance(facts.rule, AnyRes) and layout.grid == (0, 0)):
        return "pad"
    return "crop" if facts.resize == "shortest_edge" and facts.crop else "stretch"
