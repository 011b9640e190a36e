"""Inspection of a prompt: the kept tokens by layer, KV head and patch, and the answers with both caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, fromarray

from vlkv.engine import Engine
from vlkv.eval.settings import FULL, Setting
from vlkv.generation.fork import positions_or_all
from vlkv.generation.question import Question
from vlkv.generation.result import Result
from vlkv.inputs.image import open_image
from vlkv.inputs.preprocess import grid_canvas, tiles
from vlkv.inputs.prompt import Prompt
from vlkv.storage.image_facts import ImageFacts

Shares = NDArray[np.float64]


@dataclass(frozen=True)
class Pane:
    """A rectangle of a picture's tokens.

    Fields:
        picture: the pixels that they show, RGB.
        patches: the prompt position of each token, `[rows, columns]`.
    """

    picture: Image
    patches: NDArray[np.int64]


@dataclass(frozen=True)
class Inspection:
    """The contents of a page.

    Fields:
        question, policy, budget: the question and its setting.
        panes: the pictures as the model sees them: each as one tile, and again as its grid of tiles.
        full, small: the results with the full and with the compressed cache.
        kept: `[L, Hkv, S]` bool, the prompt tokens that each head of each layer keeps.
        scores: `[L, Hkv, S]`, attention summed over the observation window; zeros if nothing was observed.
        words: the text of each prompt token, None for image tokens.
    """

    question: str
    policy: str
    budget: float
    panes: list[Pane]
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


def inspect(engine: Engine, asked: Question, setting: Setting) -> Inspection:
    """Answers with both caches and collects the kept tokens.

    Args:
        engine: the opened engine.
        asked: the question; its policy and budget have no effect. Without a picture there is no heat map.
        setting: the policy and the budget.
    """
    reading = engine.read(replace(asked, scores=True))
    full, small = reading.answer([FULL.variant, setting.variant])
    text, image = engine.manifest.text, engine.manifest.image
    kept = np.zeros((text.layers, text.kv_heads, reading.tokens), bool)
    for layer, positions in enumerate(positions_or_all(small, text.kv_heads)):
        np.put_along_axis(kept[layer], positions.astype(np.int64), True, axis=1)
    pictures = [open_image(picture) for picture in asked.images]
    return Inspection(
        question=asked.prompt,
        policy=setting.policy.name,
        budget=setting.budget,
        panes=panes_of(reading.prompt, pictures, image),
        full=full,
        small=small,
        kept=kept,
        scores=np.stack(small.scores or []).astype(np.float64),
        words=words_of(engine, reading.prompt.token_ids.tolist()),
    )


def panes_of(prompt: Prompt, pictures: Sequence[Image], image: ImageFacts) -> list[Pane]:
    """All rectangles of the tokens of a prompt's pictures."""
    panes, done = [], 0
    for picture, layout in zip(pictures, prompt.pictures, strict=True):
        # the prompt position of the picture's first token, which has features
        first = int(prompt.image_positions[done])
        done += len(layout.sources)
        whole = next(tiles(picture, layout, image))
        for view in layout.views:
            if not view.tokens.size:
                continue
            seen = whole
            if view.box is not None:
                left, top, right, bottom = view.box
                seen = grid_canvas(picture, layout, image.resample)[top:bottom, left:right]
            panes.append(Pane(fromarray(seen), first + view.tokens))
    return panes


def words_of(engine: Engine, ids: Sequence[int]) -> list[str | None]:
    """The text of each token, None for image tokens; a special token shows its name."""
    image = engine.manifest.image.token_id
    return [None if token == image else word for token, word in zip(ids, engine.words(ids), strict=True)]
