"""Inspection of a prompt: the kept tokens by layer, KV head and patch, and the answers with both caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, fromarray

from vlkv.engine import Engine
from vlkv.eval.settings import FULL, Setting
from vlkv.generation.fork import positions_or_all
from vlkv.generation.question import Question
from vlkv.generation.result import Result
from vlkv.generation.sequence import clips_of
from vlkv.inputs.image import MAX_PIXELS, open_image
from vlkv.inputs.preprocess import grid_canvas, tiles
from vlkv.inputs.prompt import Prompt
from vlkv.storage.image_facts import ImageFacts
from vlkv.storage.manifest import Manifest

Shares = NDArray[np.float64]


@dataclass(frozen=True)
class Pane:
    """A rectangle of a picture's or a frame's tokens.

    Fields:
        picture: the pixels that they show, RGB.
        patches: the prompt position of each token, `[rows, columns]`.
        name: which picture or frame it is, and what of it.
        down, across: the rows and columns with which a tile begins.
    """

    picture: Image
    patches: NDArray[np.int64]
    name: str
    down: tuple[int, ...] = (0,)
    across: tuple[int, ...] = (0,)

    def tiles(self) -> list[list[NDArray[np.int64]]]:
        """The prompt positions of each tile's tokens, in the places of the tiles."""
        return [np.split(row, self.across[1:], axis=1) for row in np.split(self.patches, self.down[1:])]


@dataclass(frozen=True)
class Inspection:
    """The contents of a page.

    Fields:
        question, policy, budget: what was asked, and how.
        panes: the pictures as the model saw them: each as one tile, and again as the grid of its tiles; videos frame
            by frame.
        apart: the prompt positions of pictures' tokens that lie in no pane, such as the ends of rows, by name.
        full, small: the results with the full and with the compressed cache.
        kept: `[L, Hkv, S]` bool, the prompt tokens that each head of each layer keeps.
        scores: `[L, Hkv, S]`, attention summed over the observation window; zeros if nothing was observed.
        words: the text of each prompt token, None for image tokens.
    """

    question: str
    policy: str
    budget: float
    panes: list[Pane]
    apart: dict[str, NDArray[np.int64]]
    full: Result
    small: Result
    kept: NDArray[np.bool_]
    scores: Shares
    words: list[str | None]

    def share(self, layer: int | None = None, head: int | None = None) -> Shares:
        """The share `[S]` of the selected layers' and heads' caches that hold each prompt token."""
        chosen = self.kept if layer is None else self.kept[layer : layer + 1]
        chosen = chosen if head is None else chosen[:, head : head + 1]
        share: Shares = chosen.mean(axis=(0, 1))
        return share

    def counts(self) -> list[str]:
        """Lines that say how many tokens were kept of each picture and frame, tile by tile, and of text.

        Counts are means over layers and heads.
        """
        share, lines = self.share(), []

        def line(name: str, places: NDArray[np.int64]) -> str:
            kept = share[places].sum()
            return f"{name}: {kept:.1f} of {places.size:,} tokens ({kept / max(1, places.size):.1%})"

        for pane in self.panes:
            lines.append(line(pane.name, pane.patches))
            tiles = pane.tiles()
            if len(tiles) > 1 or len(tiles[0]) > 1:
                lines += ["  " + "".join(f"{share[tile].mean():>8.1%}" for tile in row) for row in tiles]
        lines += [line(name, places) for name, places in self.apart.items()]
        places, pictures = np.arange(len(share)), self.small.image_positions
        text = places if pictures is None else np.setdiff1d(places, pictures)
        return [*lines, line("text", text)]


def inspect(engine: Engine, asked: Question, setting: Setting) -> Inspection:
    """Answers with both caches and collects the kept tokens.

    Args:
        engine: the opened engine.
        asked: the question; its policy and budget have no effect. Without a picture there is no heat map.
        setting: the policy and the budget.
    """
    reading = engine.read(replace(asked, scores=True))
    full, small = reading.answer([FULL.variant, setting.variant])
    text = engine.manifest.text
    kept = np.zeros((text.layers, text.kv_heads, reading.tokens), bool)
    for layer, positions in enumerate(positions_or_all(small, text.kv_heads)):
        np.put_along_axis(kept[layer], positions.astype(np.int64), True, axis=1)
    panes, apart = panes_of(reading.prompt, asked, engine.manifest)
    return Inspection(
        question=asked.prompt,
        policy=setting.policy.name,
        budget=setting.budget,
        panes=panes,
        apart=apart,
        full=full,
        small=small,
        kept=kept,
        scores=np.stack(small.scores or []).astype(np.float64),
        words=words_of(engine, reading.prompt.token_ids.tolist()),
    )


def panes_of(
    prompt: Prompt, asked: Question, manifest: Manifest
) -> tuple[list[Pane], dict[str, NDArray[np.int64]]]:
    """All rectangles of the tokens of a prompt's pictures and frames, and their tokens that lie in none, by name."""
    panes: list[Pane] = []
    apart: dict[str, NDArray[np.int64]] = {}
    for (name, picture, facts), (first, layout) in zip(
        _seen(prompt, asked, manifest), prompt.placed, strict=True
    ):
        whole = next(tiles(picture, layout, facts))
        for view in layout.views:
            if not view.tokens.size:
                continue
            seen, said = whole, name if len(layout.views) == 1 else f"{name}: whole"
            if view.box is not None:
                left, top, right, bottom = view.box
                seen = grid_canvas(picture, layout, facts.resample)[top:bottom, left:right]
                said = f"{name}: {len(view.down)} x {len(view.across)} tiles"
            panes.append(Pane(fromarray(seen), first + view.tokens, said, view.down, view.across))
        inside = np.concatenate([view.tokens.reshape(-1) for view in layout.views])
        others = np.setdiff1d(np.arange(len(layout.token_ids)), inside)
        if len(others):
            apart[f"{name}: {layout.apart}"] = first + others
    return panes, apart


def _seen(prompt: Prompt, asked: Question, manifest: Manifest) -> Iterator[tuple[str, Image, ImageFacts]]:
    """Name, pixels and facts of each picture and frame, in the order of the prompt's layouts."""
    pictures = enumerate(asked.images, 1)
    frames = (
        (number, frame)
        for number, (video, chosen) in enumerate(clips_of(manifest, asked), 1)
        for frame in video.frames.images(chosen, MAX_PIXELS)
    )
    for layout in prompt.pictures:
        if layout.frame is None or manifest.video is None:
            number, source = next(pictures)
            yield f"picture {number}", open_image(source), manifest.image
        else:
            number, frame = next(frames)
            yield f"video {number}, frame {layout.frame + 1}", frame, manifest.video.frame


def words_of(engine: Engine, ids: Sequence[int]) -> list[str | None]:
    """Text of each token, None for image and video tokens; a special token shows its name."""
    video = engine.manifest.video
    seen = {engine.manifest.image.token_id} | (set() if video is None else {video.frame.token_id})
    return [None if token in seen else word for token, word in zip(ids, engine.words(ids), strict=True)]
