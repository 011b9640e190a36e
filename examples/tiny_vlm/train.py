"""Trains the checkpoint by seed, checks it on held-out PNG pictures and writes it as a Hugging Face folder.

$ python -m examples.tiny_vlm.train --seed 0 --output out/tiny_vlm
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vlkv.errors import EngineError
from vlkv.eval.forms import GRID, training_form
from vlkv.storage.directories import check_target, new_directory

from .check import exact_share
from .fast_forms import Batch, make_batch
from .losses import Heads, training_loss
from .model import make_model
from .tokens import make_processor, question_words

FORMS_PER_SEED = 1_000_000  # numbers of training forms that are reserved for one run
REQUIRED = 0.99  # a run with a smaller share of exact answers is refused
REFUSED = 3  # exit status of such a run


@dataclass(frozen=True, slots=True)
class Stage:
    """Pictures of `rows` rows (each step draws one number) with a cosine from one learning rate to another.

    `fields` is the least and most number of fields in a form; None means R/2 to 2R. `questions` is how many questions
    share a picture, at most 2R. `forms` is the size of a batch; None means 128/R within 8..64. A share `forgetful` of
    the answers sees a small cache. The stage ends early when the share of exact answers over ten steps reaches
    `solved`.
    """

    rows: tuple[int, ...]
    fields: tuple[int, int] | None
    questions: int
    forms: int | None
    rates: tuple[float, float]
    steps: int
    forgetful: float = 0.0
    solved: float | None = None


STAGES = (
    Stage((1,), (1, 2), 2, 128, (3e-3, 3e-3), 400, solved=0.9),
    Stage((2,), (2, 4), 4, 64, (3e-3, 3e-3), 200, solved=0.9),
    Stage((1, 2, 3, 4, 6), None, 20, None, (2e-3, 1.5e-3), 300, forgetful=0.5),
    Stage((2, 3, 6, 12, 24, 24), None, 20, None, (1.5e-3, 3e-5), 160, forgetful=0.5),
)
WARM_UP = 40  # steps of the whole run


def stage_batches(
    stage: Stage, rng: np.random.Generator, numbers: Iterator[int], times: int = 1
) -> Iterator[Batch]:
    """Yields the batches of a stage. Each has forms that were never seen before."""
    for _ in range(stage.steps):
        height = int(rng.choice(stage.rows))
        count = stage.forms or min(max(128 // height, 8), 64)
        fields = stage.fields or (max(height // 2, 1), min(2 * height, 24))
        rows = [sorted(rng.choice(GRID, height, replace=False).tolist()) for _ in range(count)]
        forms = [training_form(next(numbers), kept, fields) for kept in rows]
        questions, seed = min(stage.questions, fields[1]), int(rng.integers(2**32))
        yield make_batch(forms, rows, questions, seed, stage.forgetful, times)


def make_optimizer(modules: list[nn.Module]) -> torch.optim.AdamW:
    """Returns AdamW with weight decay on matrices only."""
    parameters = [p for module in modules for p in module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.02},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))


def learning_rate(stage: Stage, step: int, whole_step: int) -> float:
    """Returns the rate: a cosine within the stage, and a warm-up over the first steps of the run."""
    high, low = stage.rates
    rate = low + (high - low) * 0.5 * (1 + math.cos(math.pi * step / stage.steps))
    return rate * min(1.0, (whole_step + 1) / WARM_UP)


def train(seed: int, progress: Progress, times: int = 1) -> LlavaForConditionalGeneration:
    """Trains a model by seed. Questions are asked `times` times."""
    model, heads = make_model(seed), Heads()
    model.train()
    rng = np.random.default_rng([seed, 7])
    numbers = iter(range(seed * FORMS_PER_SEED, (seed + 1) * FORMS_PER_SEED))
    optimizer = make_optimizer([model, heads])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    whole_step = 0
    for number, stage in enumerate(STAGES, 1):
        task = progress.add_task(f"stage {number}", total=stage.steps, exact=0.0, loss=math.nan)
        lately: deque[float] = deque(maxlen=10)
        for step, batch in enumerate(stage_batches(stage, rng, numbers, times)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(stage, step, whole_step)
            result = training_loss(model, heads, batch)
            optimizer.zero_grad()
            result.loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            whole_step += 1
            lately.append(result.exact)
            progress.update(task, advance=1, exact=100 * sum(lately) / len(lately), loss=result.answer)
            if stage.solved and len(lately) == 10 and sum(lately) / 10 >= stage.solved:
                break
        progress.update(task, total=step + 1)
    return model.eval()


def check_output(parser: argparse.ArgumentParser, folder: Path) -> None:
    """Ends the program before training if the folder is not empty."""
    try:
        check_target(folder)
    except EngineError as error:
        parser.error(str(error))


def write_checkpoint(model: LlavaForConditionalGeneration, processor: LlavaProcessor, target: Path) -> None:
    """Writes a Hugging Face folder, whole or not at all."""
    with new_directory(target) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def main(arguments: list[str] | None = None) -> int:
    """Trains, checks, writes. Returns REFUSED if the check fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the forms, 0 to 999")
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1: repeatable)")
    parser.add_argument("--forms", type=int, default=500, help="held-out forms in the check at the end")
    parser.add_argument("--times", type=int, default=1, help="how often a prompt asks its question, 1 to 9")
    options = parser.parse_args(arguments)
    check_output(parser, options.output)
    torch.set_num_threads(options.threads)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("exact {task.fields[exact]:.1f}%  loss {task.fields[loss]:.3f}"),
    )
    start = time.perf_counter()
    with Progress(*columns) as progress:
        model = train(options.seed, progress, options.times)
        minutes = (time.perf_counter() - start) / 60
        processor = make_processor()
        task = progress.add_task("check  ", total=options.forms, exact=math.nan, loss=math.nan)
        words = question_words(options.times)
        share = exact_share(
            model, processor, range(options.forms), lambda n: progress.advance(task, n), words=words
        )
        progress.update(task, exact=100 * share)
    print(f"seed {options.seed}: trained in {minutes:.1f} min, exact on {share:.1%} of held-out forms")
    if share < REQUIRED:
        print(f"refused: {share:.1%} is under {REQUIRED:.0%}; try another seed", file=sys.stderr)
        return REFUSED
    write_checkpoint(model, processor, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
