"""The training losses: the answer, and linear probes of hidden states that are dropped after training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from vlkv.eval.forms import KEYS, VALUE_CHARACTERS, VALUE_LENGTHS

from .fast_forms import ALPHABET, NONE, Batch, image_features, text_states
from .model import TEXT_WIDTH
from .tokens import KEY_ROW

BLANK_WEIGHT = 0.05  # of a blank cell in the character loss


class Heads(nn.Module):
    """The linear probes. They are not part of the checkpoint."""

    def __init__(self):
        super().__init__()
        self.character = nn.Linear(TEXT_WIDTH, len(ALPHABET))
        self.key = nn.Linear(TEXT_WIDTH, len(KEYS))
        self.index = nn.Linear(TEXT_WIDTH, VALUE_LENGTHS[1] + 1)
        self.bag = nn.Linear(TEXT_WIDTH, len(VALUE_CHARACTERS))


@dataclass(frozen=True, slots=True)
class Result:
    """The loss to minimise, the cross-entropy of the answers, and the share of answers that are all right."""

    loss: Tensor
    answer: float
    exact: float


def _cross_entropy(logits: Tensor, labels: Tensor, **options: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=NONE, **options)


def training_loss(model: LlavaForConditionalGeneration, heads: Heads, batch: Batch) -> Result:
    """Computes all losses of one batch with teacher forcing."""
    features = image_features(model, batch)
    first, last = text_states(model, batch, features)
    width = features.shape[1]
    shape = (*batch.tokens.shape, TEXT_WIDTH)
    first_cells, first_text = first[:, 1 : 1 + width], first[:, 1 + width :].reshape(shape)
    last_text = last[:, 1 + width :].reshape(shape)

    weight = torch.ones(len(ALPHABET))
    weight[0] = BLANK_WEIGHT
    character = _cross_entropy(heads.character(features), batch.cells, weight=weight)
    cell = _cross_entropy(heads.key(first_cells), batch.cell_key)
    cell = cell + _cross_entropy(heads.index(first_cells), batch.cell_index)
    asked = _cross_entropy(heads.key(first_text), batch.keys)
    following = _cross_entropy(heads.index(first_text), batch.following)

    after_key = batch.keys[..., KEY_ROW:] != NONE
    share = batch.bag[:, :, None].expand(-1, -1, batch.block - KEY_ROW, -1)
    logits = heads.bag(last_text[:, :, KEY_ROW:])
    bag = -(share * logits.log_softmax(-1)).sum(-1)[after_key].mean()

    answer_labels = batch.labels[..., batch.question - 1 :]
    logits = model.lm_head(last_text[:, :, batch.question - 1 :])
    answer = _cross_entropy(logits, answer_labels)
    right = (logits.argmax(-1) == answer_labels) | (answer_labels == NONE)
    loss = answer + character + 0.5 * cell + 0.3 * asked + 0.3 * following + bag
    return Result(loss, answer.item(), right.all(-1).float().mean().item())
