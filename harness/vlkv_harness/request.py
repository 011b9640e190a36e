"""What `vlkv eval --harness` asks of an adapter's program, and what it answers: two JSON files in a folder.

The program is called with the folder. It reads `request.json` and writes `scores.json`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from vlkv.errors import VlkvError

REQUEST, SCORES = "request.json", "scores.json"


class Setting(msgspec.Struct, frozen=True):
    """A policy by its name, and the other fields of `vlkv.Question` that decide what is kept."""

    policy: str
    budget: float
    prune: str | None = None
    recall: float | None = None

    @property
    def name(self) -> str:
        """The setting as a part of a file's name."""
        return f"{self.policy}-{self.budget:g}"


class Request(msgspec.Struct, frozen=True):
    """One call of a harness.

    Fields:
        engine: the engine directory.
        tasks: the harness's names of tasks or data sets.
        settings: each task is answered under each.
        data: a folder with tasks or data sets of the user's own, in the harness's format; None for none.
        samples: the most samples of a task; None for all.
        max_new_tokens: the most tokens of an answer, instead of the task's own limit.
        batch: how many questions decode together.
        options: the arguments of `Engine.load`.
    """

    engine: str
    tasks: list[str]
    settings: list[Setting]
    data: str | None = None
    samples: int | None = None
    max_new_tokens: int | None = None
    batch: int = 1
    options: dict[str, Any] = {}


class Score(msgspec.Struct, frozen=True):
    """One figure of the harness: `metric` of `task` under the setting of that number, over `samples` samples."""

    setting: int
    task: str
    metric: str
    value: float
    samples: int | None = None


class Scores(msgspec.Struct, frozen=True):
    """The answer of a program; `error` says in one line why there are no scores."""

    scores: list[Score] = []
    error: str | None = None


def serve(scores: Callable[[Request, Path], list[Score]]) -> int:
    """Runs the program: reads the request in the folder of `sys.argv`, and writes the scores or the error."""
    folder = Path(sys.argv[1])
    request = msgspec.json.decode((folder / REQUEST).read_bytes(), type=Request)
    try:
        answer = Scores(scores(request, folder))
    except VlkvError as error:
        answer = Scores(error=str(error))
    (folder / SCORES).write_bytes(msgspec.json.encode(answer))
    return 0 if answer.error is None else 2
