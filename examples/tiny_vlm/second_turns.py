"""Batches of conversations: a picture, and blocks of two questions with their answers, each blind to the others.

The prompts are those of `fast_forms`: one batch equals many ordinary conversations about the same pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from vlkv.eval.forms import GRID, Field, Form, characters

from .fast_forms import CLASS, NONE, encode_pictures
from .model import TEXT_START
from .tokens import BOS, PAD, answer_ids, question_ids


@dataclass(frozen=True, slots=True)
class Talks:
    """B pictures of R rows with K conversations each; integer tensors, `NONE` where there is no label.

    cells, places `[B, 24 R]`: class of the character, place in the grid. tokens, labels `[B, K, T]`: a
    conversation's text, and what is to be said next in an answer.
    """

    cells: Tensor
    places: Tensor
    tokens: Tensor
    labels: Tensor


def conversation(fields: Sequence[Field]) -> tuple[list[int], list[int]]:
    """Tokens and labels of questions about these fields: an answer's end is to be said, and is not part of the text."""
    tokens: list[int] = []
    labels: list[int] = []
    for field in fields:
        asked, answer = question_ids(field.key), answer_ids(field.value)
        tokens += asked + answer[:-1]
        labels += [NONE] * (len(asked) - 1) + answer
    return tokens, labels


def make_talks(forms: Sequence[Form], rows: Sequence[Sequence[int]], count: int, seed: int) -> Talks:
    """Make the batch of these forms, each cut to its rows; `seed` draws the two fields of each conversation."""
    rng = np.random.default_rng(seed)
    cells = [
        [CLASS[c] for c in characters(form)[list(kept)].ravel()]
        for form, kept in zip(forms, rows, strict=True)
    ]
    places = [(np.array(kept)[:, None] * GRID + np.arange(GRID)).ravel() for kept in rows]
    pairs = [rng.choice(len(form.fields), 2, replace=False) for form in forms for _ in range(count)]
    of = [form for form in forms for _ in range(count)]
    talks = [conversation([form.fields[i] for i in pair]) for form, pair in zip(of, pairs, strict=True)]
    length = max(len(tokens) for tokens, _ in talks)
    texts = np.full((2, len(talks), length), PAD, np.int64)
    texts[1] = NONE
    for number, parts in enumerate(talks):
        for text, part in zip(texts, parts, strict=True):
            text[number, : len(part)] = part
    tokens, labels = (torch.from_numpy(text).unflatten(0, (len(forms), count)) for text in texts)
    return Talks(torch.tensor(cells), torch.from_numpy(np.stack(places)), tokens, labels)


def answer_logits(model: LlavaForConditionalGeneration, talks: Talks) -> Tensor:
    """Compute what the model says next at each token of the conversations, `[B, K, T, vocabulary]`."""
    text = model.model.language_model
    batch, count, length = talks.tokens.shape
    picture = 1 + talks.cells.shape[1]
    start = text.embed_tokens.weight[BOS].expand(batch, 1, -1)
    features = encode_pictures(model, talks.cells, talks.places)
    hidden = torch.cat([start, features, text.embed_tokens(talks.tokens.flatten(1))], dim=1)
    asked = (TEXT_START + torch.arange(length)).repeat(count).expand(batch, -1)
    positions = torch.cat([torch.zeros(batch, 1, dtype=torch.long), 1 + talks.places, asked], dim=1)
    rotary = text.rotary_emb(hidden, position_ids=positions)
    block = torch.cat([torch.zeros(picture), torch.arange(1, count + 1).repeat_interleave(length)])
    seen = ((block[None] == 0) | (block[None] == block[:, None])).tril()
    mask = torch.zeros(1, 1, *seen.shape).masked_fill(~seen, -torch.inf)
    for layer in text.layers:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
    return model.lm_head(text.norm(hidden)[:, picture:]).unflatten(1, (count, length))
