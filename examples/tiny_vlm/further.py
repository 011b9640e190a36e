"""Teaches a checkpoint another task of `vlkv eval` and writes it as a Hugging Face folder.

$ python -m examples.tiny_vlm.further second-question examples/tiny_vlm/checkpoint --output out/second/checkpoint

The shipped checkpoint was trained on one question per picture. To measure the cost of a policy for a second question,
or for an answer that needs patches all over the picture, a model is needed that can answer it.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from vlkv.eval.forms import GRID, KEYS, training_form

from .fast_forms import NONE
from .model import TEXT_WIDTH
from .talks import Talks, answer_logits, conversations, make_talks, text_states
from .tokens import make_processor
from .train import FORMS_PER_SEED, check_output, make_optimizer, write_checkpoint

NUMBERS = 900 * FORMS_PER_SEED  # of the first training form: beyond those of the first training
WARM_UP = 20  # steps
REQUIRED = 0.95  # a run with a smaller share of right conversations at its end is refused


@dataclass(frozen=True)
class Plan:
    """How a task is taught.

    Fields:
        stages: rows of the pictures, of which each step draws one, and the number of steps.
        rows: approximate number of rows of all pictures in a batch.
        steady: stages at the first learning rate. After them the rate falls by a cosine.
        rates: first and last learning rate.
        order: whether cells also learn the field before them, through heads that are dropped after training.
    """

    stages: tuple[tuple[tuple[int, ...], int], ...]
    rows: int
    steady: int
    rates: tuple[float, float]
    order: bool = False


PLANS = {
    "second-question": Plan(
        (((1, 2, 3), 100), ((2, 3, 4, 6, 12), 80), ((6, 12, 24, 24), 80)), 144, 0, (8e-4, 3e-5)
    ),
    "form-list": Plan(
        (((1, 2), 150), ((2, 3, 4, 6), 150), ((3, 4, 6, 8), 180), ((6, 8, 12, 24, 24), 280)),
        160,
        3,
        (1e-3, 3e-5),
        True,
    ),
}


class OrderHeads(nn.Module):
    """Linear probes: the key of a cell after the first layer, and the key before it after the second."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(TEXT_WIDTH, len(KEYS))
        self.before = nn.Linear(TEXT_WIDTH, len(KEYS) + 1)

    def forward(self, talks: Talks, states: list[Tensor]) -> Tensor:
        """Returns the loss."""
        cells = slice(1, 1 + talks.cells.shape[1])
        readings = ((self.key, states[0], talks.keys), (self.before, states[1], talks.before))
        losses = [
            cross_entropy(head(layer[:, cells]).flatten(0, 1), labels.flatten(), ignore_index=NONE)
            for head, layer, labels in readings
        ]
        return 0.5 * (losses[0] + losses[1])


def rate_at(plan: Plan, step: int) -> float:
    """Returns the learning rate of a step."""
    lengths = [steps for _, steps in plan.stages]
    steady = sum(lengths[: plan.steady])
    high, low = plan.rates
    done = max(0, step - steady) / (sum(lengths) - steady)
    return (low + (high - low) * 0.5 * (1 + math.cos(math.pi * done))) * min(1.0, (step + 1) / WARM_UP)


def teach(model: LlavaForConditionalGeneration, task: str, seed: int) -> float:
    """Trains in place. Returns the share of conversations in the last twenty steps whose answers are all right."""
    plan = PLANS[task]
    model.train()
    torch.manual_seed(seed)
    heads = OrderHeads() if plan.order else nn.Module()
    rng = np.random.default_rng([seed, 11])
    optimizer = make_optimizer([model, heads])
    parameters = [*model.parameters(), *heads.parameters()]
    choices = [rows for rows, steps in plan.stages for _ in range(steps)]
    number, exact = NUMBERS, []
    for step, choice in enumerate(track(choices, "teaching")):
        height = int(rng.choice(choice))
        count = min(max(plan.rows // height, 4), 64)
        rows = [sorted(rng.choice(GRID, height, replace=False).tolist()) for _ in range(count)]
        fields = (max(height // 2, 2), min(2 * height, 24))
        forms = [training_form(number + i, kept, fields) for i, kept in enumerate(rows)]
        number += count
        talks = make_talks(forms, rows, [conversations(task, form, 4, rng) for form in forms])
        states = text_states(model, talks)
        logits = answer_logits(model, talks, states)
        loss = cross_entropy(logits.flatten(0, 2), talks.labels.flatten(), ignore_index=NONE)
        if plan.order:
            loss = loss + heads(talks, states)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(plan, step)
        optimizer.step()
        right = (logits.argmax(-1) == talks.labels) | (talks.labels == NONE)
        exact.append(right.all(-1).float().mean().item())
    model.eval()
    return float(np.mean(exact[-20:]))


def main(arguments: list[str] | None = None) -> int:
    """Teaches and writes. Returns 1 if too few conversations are right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=PLANS, help="the task to teach")
    parser.add_argument("checkpoint", type=Path, help="a checkpoint that `train.py` wrote")
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random draws")
    options = parser.parse_args(arguments)
    check_output(parser, options.output)
    torch.set_num_threads(1)
    model = LlavaForConditionalGeneration.from_pretrained(options.checkpoint)
    share = teach(model, options.task, options.seed)
    print(f"{options.task}: {share:.1%} of the last conversations of training are right")
    if share < REQUIRED:
        print(f"refused: {share:.1%} is under {REQUIRED:.0%}; try another seed", file=sys.stderr)
        return 1
    write_checkpoint(model, make_processor(), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
