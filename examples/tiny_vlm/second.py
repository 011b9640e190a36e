"""Teach a checkpoint to answer a second question about the same picture, and write it as a Hugging Face folder.

$ python -m examples.tiny_vlm.second examples/tiny_vlm/checkpoint --output out/second/checkpoint

The shipped checkpoint was trained on one question a picture. This one is for `vlkv eval --turns 2`: what a later
question costs can be told on a model that answers it.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from vlkv.errors import EngineError
from vlkv.eval.forms import GRID, training_form
from vlkv.new_directory import check_target, new_directory

from .fast_forms import NONE
from .second_turns import answer_logits, make_talks
from .tokens import make_processor
from .train import FORMS_PER_SEED, make_optimizer

STAGES = (((1, 2, 3), 100), ((2, 3, 4, 6, 12), 80), ((6, 12, 24, 24), 80))
"""Rows of the pictures, one choice drawn a step, and steps."""
RATES, WARM_UP = (8e-4, 3e-5), 20  # of learning, by a cosine over all steps
CELLS = 144 * GRID  # of a batch's pictures, about
NUMBERS = 900 * FORMS_PER_SEED  # of the first training form: beyond those of the first training


def teach(model: LlavaForConditionalGeneration, seed: int) -> float:
    """Train in place; the share of conversations of the last ten steps with both answers right."""
    model.train()
    rng = np.random.default_rng([seed, 11])
    optimizer = make_optimizer([model])
    plan = [rows for rows, steps in STAGES for _ in range(steps)]
    number, exact = NUMBERS, []
    for step, choice in enumerate(track(plan, "teaching")):
        height = int(rng.choice(choice))
        count = min(max(CELLS // GRID // height, 4), 64)
        rows = [sorted(rng.choice(GRID, height, replace=False).tolist()) for _ in range(count)]
        fields = (max(height // 2, 2), min(2 * height, 24))
        forms = [training_form(number + i, kept, fields) for i, kept in enumerate(rows)]
        number += count
        talks = make_talks(forms, rows, count=4, seed=int(rng.integers(2**32)))
        logits = answer_logits(model, talks)
        loss = cross_entropy(logits.flatten(0, 2), talks.labels.flatten(), ignore_index=NONE)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        high, low = RATES
        rate = low + (high - low) * 0.5 * (1 + math.cos(math.pi * step / len(plan)))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARM_UP)
        optimizer.step()
        right = (logits.argmax(-1) == talks.labels) | (talks.labels == NONE)
        exact.append(right.all(-1).float().mean().item())
    model.eval()
    return float(np.mean(exact[-10:]))


def main(arguments: list[str] | None = None) -> int:
    """Teach, write; 1 where too few conversations come out right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a checkpoint that `train.py` made")
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    options = parser.parse_args(arguments)
    try:
        check_target(options.output)
    except EngineError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    model = LlavaForConditionalGeneration.from_pretrained(options.checkpoint)
    share = teach(model, options.seed)
    print(f"both answers right in {share:.1%} of the last conversations of training")
    if share < 0.95:
        print("refused: under 95%; try another seed", file=sys.stderr)
        return 1
    with new_directory(options.output) as folder:
        model.save_pretrained(folder)
        make_processor().save_pretrained(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
