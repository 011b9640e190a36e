"""Prompts with an exact number of tokens: random words, a picture of noise, and more random words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlkv.bench.settings import QUESTION
from vlkv.inputs.layouts import usual_picture
from vlkv.inputs.prompt import Prompt
from vlkv.storage.manifest import Manifest


@dataclass(frozen=True)
class Asked:
    """One prompt and its picture, none where the model takes text alone."""

    prompt: Prompt
    pictures: list[Image.Image]


def make_prompts(manifest: Manifest, length: int, batch: int, seed: int = 0) -> list[Asked]:
    """Makes `batch` different prompts of `length` tokens each; equal seeds give equal prompts.

    Text tokens are drawn from the vocabulary without the special tokens that the manifest names; the picture is
    `QUESTION` tokens before the end.
    """
    image, tokens = manifest.image, manifest.tokens
    special = [index for index in (image.token_id, tokens.bos, tokens.pad, *tokens.eos) if index is not None]
    words = np.setdiff1d(np.arange(manifest.text.vocab), special)
    random = np.random.default_rng([seed, length, batch])
    layouts = usual_picture(image)
    found = []
    for _ in range(batch):
        end = length - QUESTION
        ids: NDArray[np.int64] = random.choice(words, length).astype(np.int64)
        if tokens.bos is not None:
            ids[0] = tokens.bos
        positions, pictures = np.zeros(0, np.int64), []
        for layout in layouts:
            begin = end - len(layout.token_ids)
            ids[begin:end] = layout.token_ids
            positions = begin + np.flatnonzero(layout.has_features)
            noise = random.integers(0, 256, (image.height, image.width, 3), np.uint8)
            pictures.append(Image.fromarray(noise))
        found.append(Asked(Prompt("", ids, positions, end - 1 if layouts else -1, layouts), pictures))
    return found
