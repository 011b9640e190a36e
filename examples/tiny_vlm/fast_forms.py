"""Training batches without rendering: the patch embedding of each cell is looked up by its character.

A training picture may consist of some rows of the grid; each cell keeps its position in the whole grid. Several
questions share one picture. Each attends to the BOS token, the picture and itself only. The positions of the text start
where they do after a whole picture. One batch is thus equal to many ordinary prompts, for a fraction of the work.
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
NONE = -100  # this label does not count in the loss

BOS_HIDDEN, WORD_HIDDEN, FIELD_HIDDEN, OTHER_HIDDEN = 0.5, 0.5, 0.2, 0.9  # from a forgetful answer, per layer

CLASS = {character: i for i, character in enumerate(ALPHABET)}
KEY = {key: i for i, key in enumerate(KEYS)}


@dataclass(frozen=True, slots=True)
class Batch:
    """B pictures of R rows with K questions each. All tensors are integers, with `NONE` if there is no label.

    cells, places, cell_key, cell_index `[B, 24 R]`: class of the character, place in the grid, and for the character of
    a value its key and its index in the value. tokens, labels, keys, following `[B, K, BLOCK]`: the text, the next
    token of the answer, the requested key, and the index in the value of the next character. bag `[B, K, 36]`: the
    share of each character in the value. hidden `[L, B, K, 1 + 24 R + Q]`: the parts of BOS, picture and question that
    the answer's rows do not see in each layer. question: Q, the number of tokens of a question. BLOCK is Q plus the
    longest answer without EOS.
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
    """Makes the batch of these forms, each cut to its rows. `seed` draws each form's questions, asked `times` times.

    A share `forgetful` of the answers has a small cache, which is drawn for each layer separately; see `forget`.
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
    """Draws what answers do not see `[L, B, K, n]`. `own` `[B, K, n]` marks the cells of the requested field.

    In some layers the requested field is hidden as a whole. In half of them BOS and the question's tokens are hidden
    one by one, and in most of them the other cells are. The requested key always stays.
    """
    shape = (TEXT_LAYERS, *own.shape)
    hidden = rng.random(shape, np.float32) < OTHER_HIDDEN
    hidden[..., 0] = rng.random(shape[:-1]) < BOS_HIDDEN
    hidden[..., -question:] = rng.random((*shape[:-1], question)) < WORD_HIDDEN
    hidden[..., KEY_ROW - question] = False
    return np.where(own, rng.random((*shape[:-1], 1)) < FIELD_HIDDEN, hidden)


@cache
def glyphs() -> Tensor:
    """Draws the normalised pixels of each class's cell, `[classes, 3, 14, 14]`: white is 0, black is -4."""
    patches = []
    for character in ALPHABET:
        picture = Image.new("RGB", (CELL, CELL), "white")
        ImageDraw.Draw(picture).text((GLYPH_LEFT, GLYPH_TOP), character, fill="black", font=font())
        patches.append(np.asarray(picture, np.float32).transpose(2, 0, 1))
    return torch.from_numpy((np.stack(patches) / 255 - 1) / 0.25)


def patch_embeddings(model: LlavaForConditionalGeneration, cells: Tensor) -> Tensor:
    """Returns the tower's patch embeddings `[..., n, width]` of cells `[..., n]`, without positions."""
    table = model.model.vision_tower.embeddings.patch_embedding(glyphs()).flatten(1)
    return table[cells]


def encode_pictures(model: LlavaForConditionalGeneration, cells: Tensor, places: Tensor) -> Tensor:
    """Returns the projected features `[B, n, hidden]` of pictures with cells `[B, n]` at these places."""
    tower = model.model.vision_tower
    positions = tower.embeddings.position_embedding.weight
    patches = patch_embeddings(model, cells) + positions[1 + places]
    first = (tower.embeddings.class_embedding + positions[0]).expand(len(patches), 1, -1)
    hidden = tower.pre_layrnorm(torch.cat([first, patches], dim=1))
    for layer in tower.encoder.layers:
        hidden = layer(hidden, attention_mask=None)
    return model.model.multi_modal_projector(hidden[:, 1:])


def image_features(model: LlavaForConditionalGeneration, batch: Batch) -> Tensor:
    """Returns the projected features of the batch's pictures, `[B, 24 R, hidden]`."""
    return encode_pictures(model, batch.cells, batch.places)


def block_mask(picture: int, count: int, length: int) -> Tensor:
    """Returns the mask `[1, 1, S, S]` of `count` texts of `length` tokens after a picture.

    Each text sees only itself, causally.
    """
    number = torch.arange(1, count + 1).repeat_interleave(length)
    number = torch.cat([torch.zeros(picture, dtype=torch.long), number])
    seen = ((number[None] == 0) | (number[None] == number[:, None])).tril()
    return torch.zeros(1, 1, *seen.shape).masked_fill(~seen, -torch.inf)


def layer_masks(batch: Batch) -> Iterator[Tensor]:
    """Returns each layer's mask `[B or 1, 1, S, S]` to add to the scores: causal, without other questions."""
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
    """Returns the states of each layer `[B, 1 + 24 R + K T, hidden]`, with one mask per layer. The last is normalised.

    places `[B, 24 R]` belong to the features, tokens `[B, K, T]` to the texts, which all start after a whole picture.
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
    """Returns the text states after the first layer and at the end, `[B, 1 + 24 R + K BLOCK, hidden]`."""
    states = layer_states(model, features, batch.places, batch.tokens, layer_masks(batch))
    return [states[0], states[-1]]
