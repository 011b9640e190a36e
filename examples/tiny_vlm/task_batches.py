"""Training batches of every task: one or two whole pictures, and blocks of text that see the pictures and themselves.

A block is a conversation: a list of the keys, two questions one after the other, or a question that names one of two
forms. So one batch equals many ordinary prompts that share their pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vlkv.eval.forms import GRID, KEYS, Form, characters, question
from vlkv.eval.tasks import LIST_QUESTION, TWO_FORMS_QUESTION

from .fast_forms import CLASS, KEY, NONE, encode_pictures
from .tokens import BOS, EOS, PAD, make_tokenizer

FIRST = len(KEYS)  # the class of "no field before this one"


@dataclass(frozen=True, slots=True)
class TaskBatch:
    """B prompts' beginnings of P pictures with R rows, K blocks of T tokens each; `NONE` where there is no label.

    cells, places, keys, before `[B, P, 24 R]`: class of the character, place in the grid, and for a field's cell its
    key and the key of the field before it. tokens, labels `[B, K, T]`: a block's text and what comes next in it.
    """

    cells: Tensor
    places: Tensor
    keys: Tensor
    before: Tensor
    tokens: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """A block's tokens, and for each the token that comes next, `NONE` outside answers."""

    tokens: list[int]
    labels: list[int]


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def block(*turns: tuple[str, str]) -> Block:
    """The turns as the chat template writes them: an answer's end is to be said, and not part of the text."""
    tokens: list[int] = []
    labels: list[int] = []
    for asked, answer in turns:
        question_ids = _tokenizer()(f"{asked}\nA:", add_special_tokens=False)["input_ids"]
        answer_ids = _tokenizer()(answer, add_special_tokens=False)["input_ids"]
        tokens += question_ids + answer_ids
        labels += [NONE] * (len(question_ids) - 1) + answer_ids + [EOS]
    return Block(tokens, labels)


def list_block(form: Form) -> Block:
    """All keys in order; each token carries the blank before it."""
    return block((LIST_QUESTION, "".join(f" {field.key}" for field in form.fields)))


def question_blocks(form: Form, count: int, rng: np.random.Generator) -> list[Block]:
    """Pairs of questions about different fields."""
    pairs = (rng.choice(len(form.fields), 2, replace=False) for _ in range(count))
    fields = [[form.fields[index] for index in pair] for pair in pairs]
    return [block(*((question(field.key), field.value) for field in pair)) for pair in fields]


def two_form_blocks(forms: Sequence[Form], count: int, rng: np.random.Generator) -> list[Block]:
    """Questions that name a form, about keys that both have where there are such."""
    shared = sorted(set.intersection(*({field.key for field in form.fields} for form in forms)))
    made = []
    for _ in range(count):
        which = int(rng.integers(len(forms)))
        own = [field for field in forms[which].fields if field.key in shared] or forms[which].fields
        field = own[rng.integers(len(own))]
        asked = question(field.key, TWO_FORMS_QUESTION).replace("{form}", str(which + 1))
        made.append(block((asked, field.value)))
    return made


def make_task_batch(
    prompts: Sequence[tuple[Sequence[Form], Sequence[Block]]], rows: Sequence[Sequence[int]]
) -> TaskBatch:
    """Lay out the prompts: of each its pictures, cut to `rows` of each prompt, and its blocks, as many in each."""
    count, pictures, blocks = len(prompts), len(prompts[0][0]), len(prompts[0][1])
    width, length = GRID * len(rows[0]), max(len(b.tokens) for _, own in prompts for b in own)
    cells = np.zeros((4, count, pictures, width), np.int64)
    cells[2:] = NONE
    texts = np.full((2, count, blocks, length), PAD, np.int64)
    texts[1] = NONE
    for b, ((forms, own), kept) in enumerate(zip(prompts, rows, strict=True)):
        for p, form in enumerate(forms):
            cells[0, b, p] = [CLASS[c] for c in characters(form)[list(kept)].ravel()]
            cells[1, b, p] = (np.array(kept)[:, None] * GRID + np.arange(GRID)).ravel()
            before = FIRST
            for field in form.fields:
                start = list(kept).index(field.row) * GRID + field.column
                cells[2, b, p, start + len(field.key) : start + len(field.text)] = KEY[field.key]
                cells[3, b, p, start + len(field.key) : start + len(field.text)] = before
                before = KEY[field.key]
        for k, one in enumerate(own):
            texts[0, b, k, : len(one.tokens)] = one.tokens
            texts[1, b, k, : len(one.labels)] = one.labels
    return TaskBatch(*map(torch.from_numpy, (*cells, *texts)))


def text_mask(batch: TaskBatch) -> Tensor:
    """What is added to scores, `[1, 1, S, S]`: causal, each block blind to the others."""
    _, blocks, length = batch.tokens.shape
    pictures = 1 + batch.cells[0].numel()
    number = torch.cat(
        [torch.zeros(pictures, dtype=torch.long), torch.arange(1, blocks + 1).repeat_interleave(length)]
    )
    seen = ((number[None] == 0) | (number[None] == number[:, None])).tril()
    return torch.zeros(1, 1, *seen.shape).masked_fill(~seen, -torch.inf)


def task_states(model: LlavaForConditionalGeneration, batch: TaskBatch) -> tuple[Tensor, list[Tensor]]:
    """Compute the pictures' features `[B, P, 24 R, hidden]` and each layer's states, the last normalised."""
    text = model.model.language_model
    count, pictures, width = batch.cells.shape
    features = encode_pictures(model, batch.cells.flatten(0, 1), batch.places.flatten(0, 1))
    features = features.unflatten(0, (count, pictures))
    start = text.embed_tokens.weight[BOS].expand(count, 1, -1)
    hidden = torch.cat([start, features.flatten(1, 2), text.embed_tokens(batch.tokens.flatten(1))], dim=1)
    _, blocks, length = batch.tokens.shape
    first = 1 + GRID**2 * torch.arange(pictures)[:, None]
    asked = (1 + GRID**2 * pictures + torch.arange(length)).repeat(blocks).expand(count, -1)
    positions = [torch.zeros(count, 1, dtype=torch.long), (batch.places + first).flatten(1), asked]
    rotary = text.rotary_emb(hidden, position_ids=torch.cat(positions, dim=1))
    mask = text_mask(batch)
    states = []
    for layer in text.layers:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        states.append(hidden)
    states[-1] = text.norm(states[-1])
    return features, states
