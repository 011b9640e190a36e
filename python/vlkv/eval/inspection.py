"""What was kept of a prompt, by layer, KV head and patch, beside the answers with the full and the compressed cache."""

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
from vlkv.inputs.preprocess import arrange
from vlkv.storage.manifest import ImageFacts

Shares = NDArray[np.float64]


@dataclass(frozen=True)
class Inspection:
    """All that a page shows.

    Fields:
        question, policy, budget: what was asked, and how.
        pictures: what the model saw of each picture, RGB, of the vision graph's size.
        rows, columns: patches of a picture.
        full, small: the results with the full and with the compressed cache.
        kept: `[L, Hkv, S]` bool, which prompt tokens each head of each layer keeps.
        scores: `[L, Hkv, S]`, attention summed over the observed rows; zeros where nothing was observed.
        patches: `[N, rows * columns]`, the prompt position of each patch.
        words: text of each prompt token, None for image tokens.
    """

    question: str
    policy: str
    budget: float
    pictures: list[Image]
    rows: int
    columns: int
    full: Result
    small: Result
    kept: NDArray[np.bool_]
    scores: Shares
    patches: NDArray[np.int64]
    words: list[str | None]

    def share(self, layer: int | None = None, head: int | None = None) -> Shares:
        """Share of the chosen layers' and heads' caches that hold each prompt token, `[S]`."""
        chosen = self.kept if layer is None else self.kept[layer : layer + 1]
        chosen = chosen if head is None else chosen[:, head : head + 1]
        share: Shares = chosen.mean(axis=(0, 1))
        return share


def inspect(engine: Engine, asked: Question, setting: Setting) -> Inspection:
    """Answers with both caches and collects what was kept.

    Args:
        engine: opened.
        asked: its policy and budget have no effect; without a picture there is no heat map.
        setting: policy and budget.
    """
    reading = engine.read(replace(asked, scores=True))
    full, small = reading.answer([FULL.variant, setting.variant])
    text, image = engine.manifest.text, engine.manifest.image
    kept = np.zeros((text.layers, text.kv_heads, reading.tokens), bool)
    for layer, positions in enumerate(positions_or_all(small, text.kv_heads)):
        np.put_along_axis(kept[layer], positions.astype(np.int64), True, axis=1)
    rows, columns, skipped = patch_grid(image)
    places = reading.prompt.image_positions.reshape(len(asked.images), image.tokens_per_image)
    pictures = [fromarray(arrange(open_image(picture), image)) for picture in asked.images]
    return Inspection(
        question=asked.prompt,
        policy=setting.policy.name,
        budget=setting.budget,
        pictures=pictures,
        rows=rows,
        columns=columns,
        full=full,
        small=small,
        kept=kept,
        scores=np.stack(small.scores or []).astype(np.float64),
        patches=places[:, skipped:],
        words=words_of(engine, reading.prompt.token_ids.tolist()),
    )


def patch_grid(image: ImageFacts) -> tuple[int, int, int]:
    """Rows and columns of a picture's patches, and how many tokens come before them (a class token)."""
    for skipped in (0, 1):
        count = image.tokens_per_image - skipped
        rows = round((count * image.height / image.width) ** 0.5)
        if (
            rows
            and rows * (count // rows) == count
            and abs(image.height / rows - image.width / (count // rows)) < 1
        ):
            return rows, count // rows, skipped
    return 1, image.tokens_per_image, 0


def words_of(engine: Engine, ids: Sequence[int]) -> list[str | None]:
    """Text of each token, None for image tokens; a special token shows its name."""
    image = engine.manifest.image.token_id
    return [None if token == image else word for token, word in zip(ids, engine.words(ids), strict=True)]
