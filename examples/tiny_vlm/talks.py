"""Batches of conversations about a picture, which attend to the picture and to themselves but not to each other.

A conversation asks two questions, one after the other, or asks for the list of keys. The prompts are those of
`fast_forms`: one batch is equal to many ordinary conversations about the same pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from vlkv.eval.forms import GRID, KEYS, Field, Form, characters
from vlkv.eval.tasks import LIST_QUESTION

from .fast_forms import CLASS, KEY, NONE, block_mask, encode_pictures, layer_states
from .model import TEXT_LAYERS
from .tokens import EOS, PAD, VOCABULARY, answer_ids, make_tokenizer, question_ids

FIRST = len(KEYS)  # the class of "no field before this one"
Conversation = tuple[list[int], list[int]]
"""Tokens, and for each the next token of an answer, or `NONE` outside answers."""


@dataclass(frozen=True, slots=True)
class Talks:
    """B pictures of R rows with K conversations each. Tensors are integers, with `NONE` if there is no label.

    cells, places, keys, before `[B, 24 R]`: class of the character, place in the grid, and from the colon of a field on
    its key and the key of the field before it. tokens, labels `[B, K, T]`: see `Conversation`.
    """

    cells: Tensor
    places: Tensor
    keys: Tensor
    before: Tensor
    tokens: Tensor
    labels: Tensor


def two_questions(fields: Sequence[Field]) -> Conversation:
    """Returns a conversation that asks about these fields in turn.

    An answer's end is a label, but not part of the text.
    """
    tokens: list[int] = []
    labels: list[int] = []
    for field in fields:
        asked, answer = question_ids(field.key), answer_ids(field.value)
        tokens += asked + answer[:-1]
        labels += [NONE] * (len(asked) - 1) + answer
    return tokens, labels


def list_of_keys(form: Form) -> Conversation:
    """Returns a conversation that asks for all keys in order. Each token carries the blank before it."""
    asked = make_tokenizer()(f"{LIST_QUESTION}\nA:", add_special_tokens=False)["input_ids"]
    keys = [VOCABULARY[f" {field.key}"] for field in form.fields]
    return asked + keys, [NONE] * (len(asked) - 1) + keys + [EOS]


def conversations(task: str, form: Form, count: int, rng: np.random.Generator) -> list[Conversation]:
    """Returns the conversations of a task about a form: `count` pairs of fields, or one question for its list."""
    if task == "form-list":
        return [list_of_keys(form)]
    pairs = [rng.choice(len(form.fields), 2, replace=False) for _ in range(count)]
    return [two_questions([form.fields[i] for i in pair]) for pair in pairs]


def make_talks(
    forms: Sequence[Form], rows: Sequence[Sequence[int]], talks: Sequence[Sequence[Conversation]]
) -> Talks:
    """Makes the batch of these forms, each cut to its rows, with as many conversations about each."""
    count, width = len(forms), GRID * len(rows[0])
    cells = np.zeros((4, count, width), np.int64)
    cells[2:] = NONE
    for b, (form, kept) in enumerate(zip(forms, rows, strict=True)):
        cells[0, b] = [CLASS[c] for c in characters(form)[list(kept)].ravel()]
        cells[1, b] = (np.array(kept)[:, None] * GRID + np.arange(GRID)).ravel()
        before = FIRST
        for field in form.fields:
            start = list(kept).index(field.row) * GRID + field.column
            own = slice(start + len(field.key), start + len(field.text))
            cells[2, b, own], cells[3, b, own] = KEY[field.key], before
            before = KEY[field.key]
    each = [talk for own in talks for talk in own]
    texts = np.full((2, len(each), max(len(tokens) for tokens, _ in each)), PAD, np.int64)
    texts[1] = NONE
    for number, parts in enumerate(each):
        for text, part in zip(texts, parts, strict=True):
            text[number, : len(part)] = part
    tokens, labels = (torch.from_numpy(text).unflatten(0, (count, -1)) for text in texts)
    return Talks(*map(torch.from_numpy, cells), tokens, labels)


def text_states(model: LlavaForConditionalGeneration, talks: Talks) -> list[Tensor]:
    """Returns the states of each layer `[B, 1 + 24 R + K T, hidden]`. The last is normalised."""
    _, count, length = talks.tokens.shape
    features = encode_pictures(model, talks.cells, talks.places)
    mask = block_mask(1 + talks.cells.shape[1], count, length)
    return layer_states(model, features, talks.places, talks.tokens, repeat(mask, TEXT_LAYERS))


def answer_logits(model: LlavaForConditionalGeneration, talks: Talks, states: list[Tensor]) -> Tensor:
    """Returns the logits of the next token at each token of the conversations, `[B, K, T, vocabulary]`."""
    words = states[-1][:, 1 + talks.cells.shape[1] :]
    return model.lm_head(words).unflatten(1, talks.tokens.shape[1:])
