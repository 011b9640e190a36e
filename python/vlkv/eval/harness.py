"""Evaluates an engine by the tasks of another harness, lmms-eval or VLMEvalKit, which runs in a process of its own.

The programs are in `harness/vlkv_harness`; `request.py` there describes the two JSON files that both sides exchange.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from vlkv.errors import EvalError
from vlkv.eval.layout import as_console, as_markdown
from vlkv.eval.settings import Setting, make_settings
from vlkv.pruning.methods import resolve_prune
from vlkv.storage import manifest as manifests
from vlkv.storage.files import show, write_bytes

REQUEST, SCORES = "request.json", "scores.json"


@dataclass(frozen=True)
class Harness:
    """A harness: the package it is imported by, how to install it, and the program that calls it."""

    package: str
    install: str
    program: str


HARNESSES = {
    "lmms-eval": Harness("lmms_eval", "pip install lmms-eval", "vlkv_harness.lmms"),
    "vlmevalkit": Harness("vlmeval", "pip install ms-vlmeval", "vlkv_harness.vlmevalkit"),
}


class Score(msgspec.Struct, frozen=True):
    """One figure of a harness: `metric` of `task` under the setting of that number, over `samples` samples."""

    setting: int
    task: str
    metric: str
    value: float
    samples: int | None = None


class Answer(msgspec.Struct, frozen=True):
    """What the program wrote; `error` says in one line why there are no scores."""

    scores: list[Score] = []
    error: str | None = None


@dataclass(frozen=True)
class HarnessReport:
    """The scores of all tasks under all settings.

    Fields:
        title: the harness and what was asked of it.
        settings: policies at budgets.
        scores: in the harness's own metrics and scales.
    """

    title: str
    settings: list[Setting]
    scores: list[Score]

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """The names of the columns, one for each metric of a task, and a row for each setting."""
        columns = list(dict.fromkeys((score.task, score.metric) for score in self.scores))
        found = {(score.setting, score.task, score.metric): f"{score.value:.4g}" for score in self.scores}
        rows = [
            [
                setting.label,
                f"{setting.budget:.4g}",
                *(found.get((number, *column), "") for column in columns),
            ]
            for number, setting in enumerate(self.settings)
        ]
        return ["policy", "budget", *(f"{task} {metric}" for task, metric in columns)], rows

    def json(self) -> bytes:
        """Title and scores as one JSON object."""
        lines = [
            {
                "policy": self.settings[score.setting].policy.name,
                "budget": self.settings[score.setting].budget,
                "task": score.task,
                "metric": score.metric,
                "value": score.value,
                "samples": score.samples,
            }
            for score in self.scores
        ]
        return msgspec.json.encode({"title": self.title, "scores": lines})

    def table(self) -> Table:
        """The table for the console."""
        return as_console(self.title, *self.rows())

    def write(self, folder: Path) -> list[Path]:
        """Writes the table and the JSON. Returns their paths."""
        paths = [folder / "table.md", folder / "summary.json"]
        write_bytes(paths[0], f"{self.title}\n\n{as_markdown(*self.rows())}".encode())
        write_bytes(paths[1], self.json())
        return paths


def run_harness(
    harness: str,
    engine: Path,
    tasks: Sequence[str],
    *,
    folder: Path,
    policies: Sequence[str],
    budgets: Sequence[float],
    samples: int | None = None,
    data: Path | None = None,
    max_new_tokens: int | None = None,
    prune: str | None = None,
    recall: float | None = None,
    batch: int = 1,
    **options: Any,
) -> HarnessReport:
    """Asks the tasks of a harness under every policy and budget. The harness writes to standard error as it goes.

    Args:
        harness: a name in `HARNESSES`.
        engine: an engine directory.
        tasks: the harness's names of them, such as `docvqa_val`.
        folder: an existing folder for requests, answers and scores.
        policies: names of policies.
        budgets: shares of the cache, in (0, 1].
        samples: the most samples of a task; None for all.
        data: a folder of tasks of the user's own: YAML files of lmms-eval, or TSV files of VLMEvalKit.
        max_new_tokens: the most tokens of an answer; None for the task's own limit.
        prune: see `vlkv.eval.run`.
        recall: see `vlkv.eval.run`.
        batch: the most questions that decode together.
        **options: arguments of `Engine.load`.

    Raises:
        EvalError: the harness is unknown, not installed, or fails, or has no such task.
        PolicyError: a policy, a budget or a pruning method is wrong.
        EngineError: the directory is not an engine.
    """
    if harness not in HARNESSES:
        raise EvalError(f"unknown harness {harness!r}; known: {', '.join(HARNESSES)}")
    found = HARNESSES[harness]
    if not tasks:
        raise EvalError(f"--harness {harness} needs --task with names of its tasks, separated by commas")
    if samples is not None and samples < 1:
        raise EvalError(f"{samples} samples are under 1")
    if data is not None and not data.is_dir():
        raise EvalError(f"{show(data)} is not a folder")
    settings = make_settings(policies, budgets, recall=recall)
    resolve_prune(prune)
    if find_spec(found.package) is None:
        raise EvalError(f"--harness {harness} needs the package {found.package}: {found.install}")
    if find_spec("vlkv_harness") is None:
        raise EvalError("the harnesses' programs are not installed (package vlkv_harness)")
    manifests.read(engine)
    asked = make_settings(policies, budgets)
    request = {
        "engine": str(engine.absolute()),
        "tasks": list(tasks),
        "settings": [
            {
                "policy": plain.policy.name,
                "budget": plain.budget,
                "prune": prune,
                "recall": None if plain.policy.keeps_all else recall,
            }
            for plain in asked
        ],
        "data": None if data is None else str(data.absolute()),
        "samples": samples,
        "max_new_tokens": max_new_tokens,
        "batch": batch,
        "options": options,
    }
    answer = _call(harness, found.program, folder.absolute(), request)
    return HarnessReport(f"{harness}: {', '.join(tasks)}", settings, answer.scores)


def _call(harness: str, program: str, folder: Path, request: dict[str, Any]) -> Answer:
    """Runs the program; its standard output goes to standard error, so that ours holds the results alone."""
    (folder / SCORES).unlink(missing_ok=True)
    write_bytes(folder / REQUEST, msgspec.json.encode(request))
    done = subprocess.run(
        [sys.executable, "-m", program, str(folder)],
        stdout=sys.stderr.fileno(),
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
        check=False,
    )
    try:
        answer = msgspec.json.decode((folder / SCORES).read_bytes(), type=Answer)
    except (OSError, msgspec.MsgspecError):
        raise EvalError(f"{harness} ended with code {done.returncode}; its messages are above") from None
    if answer.error is not None:
        raise EvalError(answer.error)
    return answer
