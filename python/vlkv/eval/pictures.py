"""Heat maps of kept tokens over the pictures, as PNGs in the page's colours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vlkv.eval.inspection import Inspection, Pane

HOT = np.array([217, 72, 15], np.float64)
GROUND = np.array([251, 250, 247], np.float64)
INK, SOFT, RAIL, WASH = (22, 24, 29), (92, 99, 112), (230, 227, 220), (251, 250, 247)
GAP, CAPTION = 16, 30
MOST = 40_000_000
"""Pixels of pictures on a sheet; above, they are drawn smaller."""


def heat(picture: Image.Image, grid: NDArray[np.float64]) -> Image.Image:
    """The picture with a heat map of `grid` `[rows, columns]`, 0 to 1: dimmed at 0, tinted towards 1."""
    base = np.asarray(picture.convert("RGB"), np.float64)
    shares = Image.fromarray(grid.astype(np.float32)).resize(picture.size, Image.Resampling.NEAREST)
    share = np.asarray(shares, np.float64)[..., np.newaxis]
    veil = 0.72 * (1 - share)
    mixed = base * (1 - veil) + GROUND * veil
    tint = np.where(share > 0, 0.08 + 0.5 * share, 0.0)
    mixed = mixed * (1 - tint) + HOT * tint
    return Image.fromarray(mixed.round().astype(np.uint8))


def edged(picture: Image.Image, pane: Pane) -> Image.Image:
    """The picture with lines where one tile ends and another begins."""
    pen, (rows, columns) = ImageDraw.Draw(picture), pane.patches.shape
    for row in pane.down[1:]:
        height = round(row * picture.height / rows)
        pen.line((0, height, picture.width, height), fill=INK)
    for column in pane.across[1:]:
        left = round(column * picture.width / columns)
        pen.line((left, 0, left, picture.height), fill=INK)
    return picture


def panels(found: Inspection, choices: list[tuple[str, int | None, int | None]]) -> Image.Image:
    """One row per pane of the pictures; the first column is the pane, the others are (caption, layer, head)."""
    wide, high = (max(sides) for sides in zip(*(pane.picture.size for pane in found.panes), strict=True))
    columns = len(choices) + 1
    scale = min(1.0, (MOST / (columns * wide * len(found.panes) * high)) ** 0.5)
    wide, high = max(1, round(wide * scale)), max(1, round(high * scale))
    size = (columns * (wide + GAP) + GAP, len(found.panes) * (high + CAPTION + GAP) + GAP)
    sheet = Image.new("RGB", size, WASH)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    for row, pane in enumerate(found.panes):
        top = GAP + row * (high + CAPTION + GAP)
        small = pane.picture
        if scale < 1:
            sides = max(1, round(small.width * scale)), max(1, round(small.height * scale))
            small = small.resize(sides, Image.Resampling.BOX)
        drawn = [(pane.name, small)]
        for caption, layer, head in choices:
            drawn.append((caption, edged(heat(small, found.share(layer, head)[pane.patches]), pane)))
        for column, (caption, image) in enumerate(drawn):
            left = GAP + column * (wide + GAP)
            pen.text((left, top + 2), caption, fill=INK, font=font)
            sheet.paste(image, (left, top + CAPTION))
    return sheet


def kept_sheet(found: Inspection) -> Image.Image:
    """The sheet with all layers together, then each layer."""
    layers = range(len(found.kept))
    return panels(found, [("all layers", None, None), *((f"layer {n}", n, None) for n in layers)])


def layer_sheet(found: Inspection, layer: int) -> Image.Image:
    """The sheet of one layer: all KV heads together, then each head."""
    heads = range(found.kept.shape[1])
    return panels(found, [(f"layer {layer}", layer, None), *((f"KV head {n}", layer, n) for n in heads)])


def bars(found: Inspection) -> Image.Image:
    """A chart of kept tokens and sparsity, one line per layer."""
    counts, sparsity = found.small.kept_tokens, found.small.sparsity
    line, left, long = 30, 100, 300
    sheet = Image.new("RGB", (left + 2 * (long + 110), (len(counts) + 1) * line + 2 * GAP), WASH)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    for column, name in enumerate(("tokens kept", "sparsity")):
        pen.text((left + column * (long + 110), GAP), name, fill=SOFT, font=font)
    for layer, (count, sparse) in enumerate(zip(counts, sparsity, strict=True)):
        top = GAP + (layer + 1) * line
        pen.text((GAP, top), f"layer {layer}", fill=INK, font=font)
        values = (
            (count / max(*counts, 1), f"{count:,}", (217, 72, 15)),
            (sparse, f"{sparse:.1%}", (139, 145, 156)),
        )
        for column, (share, text, colour) in enumerate(values):
            start = left + column * (long + 110)
            pen.rounded_rectangle((start, top + 4, start + long, top + 16), 6, fill=RAIL)
            if share > 0:
                pen.rounded_rectangle(
                    (start, top + 4, start + max(8, round(share * long)), top + 16), 6, fill=colour
                )
            pen.text((start + long + 12, top), text, fill=SOFT, font=font)
    return sheet
