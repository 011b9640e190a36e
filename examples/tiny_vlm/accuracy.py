"""`make accuracy`: trains checkpoints by seed, asks each about fresh forms under every policy and budget.

$ python -m examples.tiny_vlm.accuracy --cache out/accuracy --output out/accuracy/report

The heads that read a form differ by seed, so the table of one checkpoint is an illustration, not evidence. A control
with shuffled weights shows that the benchmark can fail. The cache keeps checkpoints, engines and answers. The output of
a training is written beside its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlkv import POLICIES
from vlkv.storage.files import write_bytes

from .spread import Results, chart, table
from .tokens import question_words
from .train import REFUSED

BUDGETS = "0.5,0.2,0.1,0.05"
CONTROL = "control"


@dataclass(frozen=True)
class Recipe:
    """A checkpoint to train: its seed, and how often its prompt asks the question."""

    seed: int
    times: int = 1

    @property
    def name(self) -> str:
        """The name of its folder, also used in tables."""
        return f"seed {self.seed}" + (f", asked {self.times} times" if self.times > 1 else "")


@dataclass(frozen=True)
class Checkpoint:
    """The folder of a checkpoint, and the words on which it was trained."""

    name: str
    folder: Path
    words: str


def run(*command: object) -> None:
    """Runs a step in a process of its own and shows its output."""
    subprocess.run([str(part) for part in command], check=True)


def trained(recipe: Recipe, cache: Path) -> Checkpoint | None:
    """Returns the recipe's checkpoint.

    Trains it on one core if the cache lacks it; returns None if its training was refused.
    """
    folder = cache / "checkpoints" / recipe.name.replace(", ", "-").replace(" ", "-")
    if not (folder / "model.safetensors").is_file():
        print(f"training {recipe.name}", flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = folder.with_suffix(".log")
        options = ("--seed", recipe.seed, "--times", recipe.times, "-o", folder)
        command = (sys.executable, "-m", "examples.tiny_vlm.train", *map(str, options))
        with log.open("w") as output:
            status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
        told = [line for line in log.read_text().splitlines() if line.startswith(("seed", "refused"))]
        print("\n".join(told), flush=True)
        if status not in (0, REFUSED):
            raise RuntimeError(f"training {recipe.name} ended with {status}: {log}")
        if status == REFUSED:
            return None
    return Checkpoint(recipe.name, folder, question_words(recipe.times))


def all_trained(recipes: Sequence[Recipe], cache: Path, jobs: int) -> list[Checkpoint]:
    """Returns the checkpoints of the recipes without the refused ones, with `jobs` trainings at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        made = list(pool.map(lambda recipe: trained(recipe, cache), recipes))
    return [checkpoint for checkpoint in made if checkpoint]


def shuffled(source: Checkpoint, cache: Path) -> Checkpoint:
    """Writes the control: the numbers of each tensor in another order, so it knows nothing and all sizes are right."""
    from safetensors.numpy import load_file, save_file

    folder = cache / "checkpoints" / CONTROL
    if not (folder / "model.safetensors").is_file():
        shutil.copytree(source.folder, folder, dirs_exist_ok=True)
        rng = np.random.default_rng(0)
        weights = load_file(source.folder / "model.safetensors")
        for name, array in weights.items():
            weights[name] = rng.permutation(array.ravel()).reshape(array.shape)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return Checkpoint(CONTROL, folder, source.words)


def measured(checkpoint: Checkpoint, cache: Path, policies: str, samples: int, seed: int) -> Results:
    """Returns exact answers by (policy, budget). Questions that were asked before are not asked again."""
    vlkv = Path(sys.executable).with_name("vlkv")
    graphs, engine, answers = (
        cache / kind / checkpoint.folder.name for kind in ("graphs", "engines", "answers")
    )
    if not (engine / "manifest.json").is_file():
        run(vlkv, "-q", "export", checkpoint.folder, "-o", graphs)
        run(vlkv, "-q", "build", graphs, "-o", engine)
    asked = ("--task", "form-qa", "--question", checkpoint.words, "--policy", policies, "--budget", BUDGETS)
    print(f"asking {checkpoint.name}", flush=True)
    run(vlkv, "eval", engine, *asked, "--samples", samples, "--seed", seed, "-o", answers)
    lines = json.loads((answers / "summary.json").read_text())["lines"]
    return {(line["policy"], line["budget"]): line["exact"]["value"] for line in lines}


def main(arguments: list[str] | None = None) -> int:
    """Trains, asks, writes `table.md` and `chart.png`. Returns 1 if the control answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cache", type=Path, required=True, help="folder that keeps checkpoints, engines and answers"
    )
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder for table and chart")
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4], help="seeds of the checkpoints"
    )
    parser.add_argument(
        "--long-seeds", type=int, nargs="*", default=[5], help="seeds of the checkpoints with a longer prompt"
    )
    # the policies that read each row of the attention by itself take much longer
    quick = [name for name, policy in POLICIES.items() if policy.reduce == "sum"]
    parser.add_argument("--policy", default=",".join(quick), help="names, separated by commas")
    parser.add_argument("--samples", type=int, default=200, help="forms per checkpoint")
    parser.add_argument("--form-seed", type=int, default=1, help="seed of the forms")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--jobs", type=int, default=cores, help="trainings at a time, one core each")
    options = parser.parse_args(arguments)
    recipes = [*(Recipe(seed) for seed in options.seeds), *(Recipe(seed, 2) for seed in options.long_seeds)]
    checkpoints = all_trained(recipes, options.cache, options.jobs)
    if not checkpoints:
        parser.error("no checkpoint reads forms with its full cache: try other --seeds")
    control = shuffled(checkpoints[0], options.cache)
    asked = (options.cache, options.policy, options.samples, options.form_seed)
    results = {checkpoint.name: measured(checkpoint, *asked) for checkpoint in checkpoints}
    failed = max(measured(control, *asked).values())
    options.output.mkdir(parents=True, exist_ok=True)
    refused = [recipe.name for recipe in recipes if recipe.name not in results]
    text = table(results) + f"\nThe control answers at most {failed:.1%}.\n"
    if refused:
        text += f"Left out, as they do not read with the full cache: {'; '.join(refused)}.\n"
    write_bytes(options.output / "table.md", text.encode())
    chart(results, options.output / "chart.png")
    print(text)
    return int(failed > 0.05)


if __name__ == "__main__":
    sys.exit(main())
