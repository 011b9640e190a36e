"""The layout of a picture's tiles and tokens, which follows from its width and height alone.

T tokens of a picture that get features, P rows of features a tile, R rows and C columns of a tile's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkv.errors import ImageError
from vlkv.inputs.grids import Axis, best_pinpoint, padding, scaled_into
from vlkv.storage.image_facts import AnyRes, ImageFacts, Rows, VideoFacts, takes_pictures

Array = NDArray[Any]
SHRINK_FROM = 1.1
"""OneVision scales a grid down if its side is more than this many times too long."""


@dataclass(frozen=True, eq=False)
class View:
    """A rectangle of a picture's tokens, and the pixels that they show.

    Fields:
        tokens: indices `[rows, columns]` into the layout's tokens.
        box: left, top, right and bottom in the canvas of the grid's tiles; None for the tile of the whole picture.
        down, across: the rows and columns of `tokens` with which a tile begins. A token that is made of several tiles'
            features belongs to the one of which it has most.
    """

    tokens: NDArray[np.int64]
    box: tuple[int, int, int, int] | None = None
    down: tuple[int, ...] = (0,)
    across: tuple[int, ...] = (0,)


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """The layout of one picture.

    Fields:
        size: the picture's width and height, upright.
        tiles: `(height, width)` of each tile that the tower receives; all are equal.
        count: the number of tiles.
        grid: rows and columns of tiles that the scaled picture is cut into, after the overview tile; (0, 0) for none.
        scaled: width and height of the picture inside the grid, where it is centred; without a grid, of its one tile.
        token_ids: the picture's tokens in the prompt, `[K]`, K >= T.
        has_features: `[K]` bool, which tokens get features; the others are text tokens.
        sources: `[T, n]`, the rows of the tower's features, over all tiles, from which each token is interpolated.
        weights: `[T, n]` float32, the weights of these rows; None if each token is one row (n = 1).
        views: the rectangles that its tokens form.
        apart: what its tokens are that lie in no view, in words; "" where there are none.
        frame: its place among the frames of its video, from 0; None for a picture.
    """

    size: tuple[int, int]
    tiles: tuple[int, int]
    count: int = 1
    grid: tuple[int, int] = (0, 0)
    scaled: tuple[int, int]
    token_ids: NDArray[np.int64]
    has_features: NDArray[np.bool_]
    sources: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None
    views: tuple[View, ...]
    apart: str = ""
    frame: int | None = None


def lay_out(sizes: Sequence[tuple[int, int]], facts: ImageFacts, others: int = 0) -> tuple[Layout, ...]:
    """The layouts of a prompt's pictures, from their widths and heights.

    `others` is the number of pictures in earlier turns: some models use fewer tiles if there are several pictures.
    Raises `ImageError` for a picture that would have no tokens at all, and for any if the model takes none.
    """
    if sizes and not takes_pictures(facts):
        raise ImageError(f"this model takes text alone; {len(sizes)} pictures were given")
    alone = len(sizes) + others == 1
    if not isinstance(facts.rule, AnyRes | Rows):
        sizes = [(facts.width, facts.height)] * len(sizes)
    return tuple(_lay_out(size, facts, alone) for size in sizes)


def lay_out_video(frames: int, facts: VideoFacts) -> tuple[Layout, ...]:
    """The layouts of a video's frames; the last one has the token that ends the video, where there is one."""
    return tuple(replace(_frame(facts, place == frames - 1), frame=place) for place in range(frames))


def usual_picture(facts: ImageFacts) -> tuple[Layout, ...]:
    """The layout of a picture of a tile's size; nothing if the model takes text alone."""
    return lay_out([(facts.width, facts.height)], facts) if takes_pictures(facts) else ()


def pack(features: NDArray[np.float32], layout: Layout) -> NDArray[np.float32]:
    """The features `[T, hidden]` of a picture's tokens, from the tower's features `[count, P, hidden]` of its tiles."""
    rows = features.reshape(-1, features.shape[-1])
    if layout.weights is None:
        packed: NDArray[np.float32] = rows[layout.sources[:, 0]]
        return packed
    packed = rows[layout.sources[:, 0]] * layout.weights[:, :1]
    for place in range(1, layout.sources.shape[1]):
        packed += rows[layout.sources[:, place]] * layout.weights[:, place : place + 1]
    return packed


@lru_cache(maxsize=32)
def _lay_out(size: tuple[int, int], facts: ImageFacts, alone: bool) -> Layout:
    if isinstance(facts.rule, Rows):
        return _rows(size, facts, facts.rule)
    if not isinstance(facts.rule, AnyRes):
        rows, columns, skipped = patches(facts)
        return _one_tile(size, facts, np.arange(facts.tile_features), skipped + _rectangle(rows, columns))
    if facts.rule.several == "whole" and not alone:
        view = _rectangle(facts.rule.rows, facts.rule.columns)
        return _one_tile(size, facts, np.append(np.arange(view.size), facts.tile_features - 1), view)
    return _any_res(size, facts, facts.rule)


def patches(facts: ImageFacts) -> tuple[int, int, int]:
    """Rows and columns of a tile's patches, and the number of tokens before them (a class token)."""
    for skipped in (0, 1):
        count = facts.tile_features - skipped
        rows = round((count * facts.height / facts.width) ** 0.5)
        whole = rows and rows * (count // rows) == count
        if whole and abs(facts.height / rows - facts.width / (count // rows)) < 1:
            return rows, count // rows, skipped
    return 1, facts.tile_features, 0


def _rectangle(rows: int, columns: int) -> NDArray[np.int64]:
    return np.arange(rows * columns).reshape(rows, columns)


def _one_tile(
    size: tuple[int, int], facts: ImageFacts, rows: NDArray[np.int64], view: NDArray[np.int64]
) -> Layout:
    """Rows of one tile's features as tokens."""
    apart = "" if len(rows) == view.size else "class token" if view[0, 0] else "newline"
    return Layout(
        size=size,
        tiles=(facts.height, facts.width),
        scaled=(facts.width, facts.height),
        token_ids=np.full(len(rows), facts.token_id, np.int64),
        has_features=np.ones(len(rows), bool),
        sources=rows[:, np.newaxis],
        views=(View(view),),
        apart=apart,
    )


def _any_res(size: tuple[int, int], facts: ImageFacts, rule: AnyRes) -> Layout:
    """The tokens of the overview tile, then those of the grid without padding, with a newline after each grid row."""
    height, width = best_pinpoint(size, rule.pinpoints)
    grid = height // facts.height, width // facts.width
    down, across = _axes(size, grid, rule)
    per_tile, newline = rule.rows * rule.columns, facts.tile_features - 1

    def row_of(y: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.int64]:
        tiles: NDArray[np.int64] = 1 + y // rule.rows * grid[1] + x // rule.columns
        return tiles * facts.tile_features + y % rule.rows * rule.columns + x % rule.columns

    rows, shares = _crossed(down, across, row_of)
    kept = rows.shape[:2]
    of_one = np.zeros(rows.shape[2], np.int64)
    of_one[0] = 1
    whole = np.arange(per_tile)[:, np.newaxis] * of_one
    sources = _with_newlines(whole, rows, of_one * newline)
    weights = _with_newlines(whole * 0 + of_one, shares, of_one).astype(np.float32)
    view = per_tile + _rectangle(kept[0], kept[1] + 1)[:, :-1]
    pixels = facts.height / rule.rows, facts.width / rule.columns
    return Layout(
        size=size,
        tiles=(facts.height, facts.width),
        count=1 + grid[0] * grid[1],
        grid=grid,
        scaled=scaled_into(size, (width, height)),
        token_ids=np.full(len(sources), facts.token_id, np.int64),
        has_features=np.ones(len(sources), bool),
        sources=sources,
        weights=None if weights.shape[1] == 1 else weights,
        views=(
            View(_rectangle(rule.rows, rule.columns)),
            View(view, _box(down, across, pixels), _begins(down, rule.rows), _begins(across, rule.columns)),
        ),
        apart="row ends",
    )


@lru_cache(maxsize=8)
def _frame(facts: VideoFacts, last: bool) -> Layout:
    """A frame's tokens before those of its grid, then the grid, scaled, then the newline of the last frame."""
    (high, wide), (rows, columns) = facts.grid, facts.scaled or facts.grid
    sources, shares = _crossed(Axis(0, high, rows), Axis(0, wide, columns), lambda y, x: y * wide + x)
    of_one = np.zeros(sources.shape[2], np.int64)
    of_one[0] = 1
    before = np.arange(facts.begin, facts.begin + facts.prefix)
    behind = np.array([facts.newline] if last and facts.newline is not None else [], np.int64)
    single = np.concatenate([before, behind])[:, np.newaxis] * of_one
    inside = facts.begin + facts.prefix + sources.reshape(-1, len(of_one))
    placed = np.concatenate([single[: facts.prefix], inside, single[facts.prefix :]])
    weights = np.tile(of_one, (len(placed), 1)).astype(np.float32)
    weights[facts.prefix : facts.prefix + len(inside)] = shares.reshape(-1, len(of_one))
    size = facts.frame.width, facts.frame.height
    return Layout(
        size=size,
        tiles=(facts.frame.height, facts.frame.width),
        scaled=size,
        token_ids=np.full(len(placed), facts.frame.token_id, np.int64),
        has_features=np.ones(len(placed), bool),
        sources=placed,
        weights=None if len(of_one) == 1 else weights,
        views=(View(facts.prefix + _rectangle(*sources.shape[:2])),),
        apart=" and ".join(["class token"] * (facts.prefix > 0) + ["newline"] * len(behind)),
    )


def _crossed(
    down: Axis, across: Axis, row_of: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """`[R,C,n]`: the rows of features that each place of a scaled grid is made of, and in what shares.

    `row_of` takes places down and across, as arrays that broadcast, to the row of features that lies there.
    """
    shape = len(down.places), len(across.places), down.places.shape[1] * across.places.shape[1]
    rows = row_of(down.places[:, np.newaxis, :, np.newaxis], across.places[np.newaxis, :, np.newaxis, :])
    shares = down.shares[:, np.newaxis, :, np.newaxis] * across.shares[np.newaxis, :, np.newaxis, :]
    return rows.reshape(shape), shares.reshape(shape)


def _axes(size: tuple[int, int], grid: tuple[int, int], rule: AnyRes) -> tuple[Axis, Axis]:
    """The grid's rows and columns of tokens without padding, scaled down if there are too many."""
    down, across = grid[0] * rule.rows, grid[1] * rule.columns
    top, left = padding(size, down, across)
    high, wide = target = down - 2 * top, across - 2 * left
    if rule.shrink_to is not None:
        ratio = math.sqrt(high * wide / (rule.shrink_to * rule.rows**2))
        if ratio > SHRINK_FROM:
            target = int(high // ratio), int(wide // ratio)
            if min(target) < 1:
                raise ImageError(
                    f"{size[0]} x {size[1]} picture is too narrow: it shrinks to no tokens at all"
                )
    return Axis(top, high, target[0]), Axis(left, wide, target[1])


def _box(down: Axis, across: Axis, pixels: tuple[float, float]) -> tuple[int, int, int, int]:
    """The part of the canvas that the remaining tokens show; `pixels` is the size of each."""
    left, right = round(across.begin * pixels[1]), round(across.end * pixels[1])
    top, bottom = round(down.begin * pixels[0]), round(down.end * pixels[0])
    return left, top, right, bottom


def _begins(axis: Axis, tokens: int) -> tuple[int, ...]:
    """The kept places with which a tile begins, of so many tokens in this direction."""
    main = axis.places[np.arange(len(axis.places)), axis.shares.argmax(axis=1)]
    return (0, *(np.flatnonzero(np.diff(main // tokens)) + 1).tolist())


def _with_newlines(whole: Array, grid: Array, newline: Array) -> Array:
    """Joins the overview tile's tokens `[P, n]` and the grid's `[R, C, n]`, with `newline` `[n]` after each row."""
    ends = np.broadcast_to(newline, (len(grid), 1, grid.shape[2]))
    return np.concatenate([whole, np.concatenate([grid, ends], axis=1).reshape(-1, grid.shape[2])])


def _rows(size: tuple[int, int], facts: ImageFacts, rule: Rows) -> Layout:
    """The layout with one token per patch, and a text token after each row."""
    width, height = size
    ratio = max(height / rule.longest[0], width / rule.longest[1])
    if ratio > 1:
        height, width = math.floor(height / ratio), math.floor(width / ratio)
    down, across = (height - 1) // rule.patch + 1, (width - 1) // rule.patch + 1
    if down < 1 or across < 1:
        raise ImageError(
            f"{size[0]} x {size[1]} picture is too narrow: scaled to {rule.longest[1]} pixels it has no patches"
        )
    ids = np.full((down, across + 1), facts.token_id, np.int64)
    ids[:, -1] = rule.break_id
    ids[-1, -1] = rule.end_id
    has_features = np.ones(ids.shape, bool)
    has_features[:, -1] = False
    return Layout(
        size=size,
        tiles=(down * rule.patch, across * rule.patch),
        scaled=(across * rule.patch, down * rule.patch),
        token_ids=ids.reshape(-1),
        has_features=has_features.reshape(-1),
        sources=np.arange(down * across)[:, np.newaxis],
        views=(View(_rectangle(down, across + 1)[:, :-1]),),
        apart="row ends",
    )
