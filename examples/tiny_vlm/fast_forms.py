"""Training batches that never render: each cell's patch embedding is gathered by its character.

A training picture may be small: some rows of the grid, each cell with its position in the whole grid. Several
questions share one picture; each sees the BOS, the picture and itself only. Text starts where it does after a
whole picture. So one batch equals many ordinary prompts, at a fraction of the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from vlkv.eval.forms import (
    CELL,
    GLYPH_LEFT,
    GLYPH_TOP,
    GRID,
    KEYS,
    VALUE_CHARACTERS,
    VALUE_LENGTHS,
    Form,
    characters,
    font,
)

from .model import TEXT_LAYERS, TEXT_START
from .tokens import BOS, KEY_ROW, PAD, answer_ids, question_ids

ALPHABET = " :abcdefghijklmnopqrstuvwxyz" + VALUE_CHARACTERS  # of a cell; its class is the index here
NONE = -100  # a label that no loss counts

BOS_HIDDEN, WORD_HIDDEN, FIELD_HIDDEN, OTHER_HIDDEN = 0.5, 0.5, 0.2, 0.9  # from a forgetful answer, per layer

CLASS = {character: i for i, character in enumerate(ALPHABET)}
KEY = {key: i for i, key in enumerate(KEYS)}


@dataclass(frozen=True, slots=True)
class Batch:
    """B pictures of R rows with K questions each; all integer tensors, `NONE` where there is no label.

    cells, places, cell_key, cell_index `[B, 24 R]`: class of the character, place in the grid, and for a
    value's character its key and its index in the value. tokens, labels, keys, following `[B, K, BLOCK]`: the
    text, what comes next in the answer, the key asked for, the index in the value of what comes next.
    bag `[B, K, 36]`: the share of each character in the value.
    hidden `[L, B, K, 1 + 24 R + Q]`: what of BOS, picture and question each layer's answer rows do not see.
    question: tokens of a question, Q; BLOCK is Q and the longest answer without EOS.
    """

    cells: Tensor
    places: Tensor
    cell_key: Tensor
    cell_index: Tensor
    tokens: Tensor
    labels: Tensor
    keys: Tensor
    following: Tensor
    bag: Tensor
    hidden: Tensor
    question: int

    @property
    def block(self) -> int:
        """Tokens of a question and its longest answer without EOS."""
        return self.question + VALUE_LENGTHS[1]


def make_batch(
    forms: Sequence[Form],
    rows: Sequence[Sequence[int]],
    questions: int,
    seed: int,
    forgetful: float = 0.0,
    times: int = 1,
) -> Batch:
    """Make the batch of these forms, each cut to its rows; `seed` draws the questions of each, asked `times` times.

    A share `forgetful` of the answers has a small cache, drawn anew for each layer; see `forget`.
    """
    rng = np.random.default_rng(seed)
    asked = len(question_ids(KEYS[0], times))
    block = asked + VALUE_LENGTHS[1]
    count, width = len(forms), GRID * len(rows[0])
    cells = np.zeros((count, width), np.int64)
    places = np.zeros((count, width), np.int64)
    cell_labels = np.full((2, count, width), NONE, np.int64)
    tokens = np.full((count, questions, block), PAD, np.int64)
    labels = np.full((3, count, questions, block), NONE, np.int64)
    bag = np.zeros((count, questions, len(VALUE_CHARACTERS)), np.float32)
    own = np.zeros((count, questions, 1 + width + asked), bool)
    for b, (form, kept) in enumerate(zip(forms, rows, strict=True)):
        cells[b] = [CLASS[c] for c in characters(form)[list(kept)].ravel()]
        places[b] = (np.array(kept)[:, None] * GRID + np.arange(GRID)).ravel()
        for field in form.fields:
            start = list(kept).index(field.row) * GRID + field.value_column
            cell_labels[0, b, start : start + len(field.value)] = KEY[field.key]
            cell_labels[1, b, start : start + len(field.value)] = np.arange(len(field.value))
        order = np.resize(rng.permutation(len(form.fields)), questions)
        for k, field in enumerate(form.fields[i] for i in order):
            answer = answer_ids(field.value)
            end = asked + len(answer) - 1
            tokens[b, k, :end] = [*question_ids(field.key, times), *answer[:-1]]
            labels[0, b, k, asked - 1 : end] = answer
            labels[1, b, k, KEY_ROW:end] = KEY[field.key]
            labels[2, b, k, asked - 1 : end] = np.arange(len(answer))
            start = 1 + list(kept).index(field.row) * GRID + field.column
            own[b, k, start : start + len(field.text)] = True
            for character in field.value:
                bag[b, k, VALUE_CHARACTERS.index(character)] += 1 / len(field.value)
    hidden = forget(own, rng, asked) & (rng.random((count, questions, 1)) < forgetful)
    arrays = (cells, places, *cell_labels, tokens, *labels, bag, hidden)
    return Batch(*map(torch.from_numpy, arrays), question=asked)


def forget(own: np.ndarray, rng: np.random.Generator, question: int) -> np.ndarray:
    """Draw what answers do not see `[L, B, K, n]`; `own` `[B, K, n]` marks the cells of the field asked for.

    The field asked for goes as a whole in some layers, BOS and the question's tokens one by one in half of them,
    the other cells one by one in most. The key asked for always stays.
    """
    shape = (TEXT_LAYERS, *own.shape)
    hidden = rng.random(shape, np.float32) < OTHER_HIDDEN
    hidden[..., 0] = rng.random(shape[:-1]) < BOS_HIDDEN
    hidden[..., -question:] = rng.random((*shape[:-1], question)) < WORD_HIDDEN
    hidden[..., KEY_ROW - question] = False
    return np.where(own, rng.random((*shape[:-1], 1)) < FIELD_HIDDEN, hidden)


@cache
def glyphs() -> Tensor:
    """Draw the normalised pixels of each class's cell, `[classes, 3, 14, 14]`: white is 0, black is -4."""
    patches = []
    for character in ALPHABET:
        picture = Image.new("RGB", (CELL, CELL), "white")
        ImageDraw.Draw(picture).text((GLYPH_LEFT, GLYPH_TOP), character, fill="black", font=font())
        patches.append(np.asarray(picture, np.float32).transpose(2, 0, 1))
    return torch.from_numpy((np.stack(patches) / 255 - 1) / 0.25)


def patch_embeddings(model: LlavaForConditionalGeneration, cells: Tensor) -> Tensor:
    """Gather the tower's patch embeddings `[..., n, width]` of cells `[..., n]`, before any position."""
    table = model.model.vision_tower.embeddings.patch_embedding(glyphs()).flatten(1)
    return table[cells]


def encode_pictures(model: LlavaForConditionalGeneration, cells: Tensor, places: Tensor) -> Tensor:
    """Compute the projected features `[B, n, hidden]` of pictures whose cells `[B, n]` stand at these places."""
    tower = model.model.vision_tower
    positions = tower.embeddings.position_embedding.weight
    patches = patch_embeddings(model, cells) + positions[1 + places]
    first = (tower.embeddings.class_embedding + positions[0]).expand(len(patches), 1, -1)
    hidden = tower.pre_layrnorm(torch.cat([first, patches], dim=1))
    for layer in tower.encoder.layers:
        hidden = layer(hidden, attention_mask=None)
    return model.model.multi_modal_projector(hidden[:, 1:])


def image_features(model: LlavaForConditionalGeneration, batch: Batch) -> Tensor:
    """Compute the projected features of the batch's pictures, `[B, 24 R, hidden]`."""
    return encode_pictures(model, batch.cells, batch.places)


def block_mask(picture: int, count: int, length: int) -> Tensor:
    """Make the mask `[1, 1, S, S]` of `count` texts of `length` tokens after a picture: causal, each its own."""
    number = torch.arange(1, count + 1).repeat_interleave(length)
    number = torch.cat([torch.zeros(picture, dtype=torch.long), number])
    seen = ((number[None] == 0) | (number[None] == number[:, None])).tril()
    return torch.zeros(1, 1, *seen.shape).masked_fill(~seen, -torch.inf)


def layer_masks(batch: Batch) -> Iterator[Tensor]:
    """Make each layer's mask `[B or 1, 1, S, S]` added to scores: causal, blind to other questions."""
    layers, count, questions, _ = batch.hidden.shape
    picture = 1 + batch.cells.shape[1]
    shared = block_mask(picture, questions, batch.block)
    for layer in range(layers):
        if not batch.hidden.any():
            yield shared
            continue
        mask = shared.repeat(count, 1, 1, 1)
        for k in range(questions):
            start = picture + k * batch.block
            end = start + batch.question
            rows, hidden = mask[:, 0, end : start + batch.block], batch.hidden[layer, :, k, None]
            rows[..., :picture].masked_fill_(hidden[..., :picture], -torch.inf)
            rows[..., start:end].masked_fill_(hidden[..., picture:], -torch.inf)
        yield mask


def layer_states(
    model: LlavaForConditionalGeneration,
    features: Tensor,
    places: Tensor,
    tokens: Tensor,
    masks: Iterable[Tensor],
) -> list[Tensor]:
    """Compute each layer's states `[B, 1 + 24 R + K T, hidden]`, the last normalised, with a mask for each layer.

    places `[B, 24 R]` of the features, tokens `[B, K, T]` of the texts, which all begin where a whole picture ends.
    """
    text = model.model.language_model
    batch, count, length = tokens.shape
    start = text.embed_tokens.weight[BOS].expand(batch, 1, -1)
    hidden = torch.cat([start, features, text.embed_tokens(tokens.flatten(1))], dim=1)
    asked = (TEXT_START + torch.arange(length)).repeat(count).expand(batch, -1)
    positions = torch.cat([torch.zeros(batch, 1, dtype=torch.long), 1 + places, asked], dim=1)
    rotary = text.rotary_emb(hidden, position_ids=positions)
    states = []
    for layer, mask in zip(text.layers, masks, strict=True):
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        states.append(hidden)
    return [*states[:-1], text.norm(hidden)]


def text_states(model: LlavaForConditionalGeneration, batch: Batch, features: Tensor) -> list[Tensor]:
    """Compute the text states after the first layer and at the end, `[B, 1 + 24 R + K BLOCK, hidden]`."""
    states = layer_states(model, features, batch.places, batch.tokens, layer_masks(batch))
    return [states[0], states[-1]]
