"""The program of `vlkv eval --harness vlmevalkit`: VLMEvalKit's data sets and metrics, vlkv's answers.

VLMEvalKit's own loop asks one question at a time; here the questions of a data set are answered in batches.
Source: https://github.com/open-compass/VLMEvalKit
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any

import msgspec

from vlkv import Engine, Question
from vlkv.errors import EvalError
from vlkv_harness.answers import PLACE, answers, question
from vlkv_harness.request import Request, Score, serve

BY_RULES = ("MCQ", "Y/N")
"""Types of data sets whose answers VLMEvalKit compares by rules, if no language model is named as the judge."""


def message(parts: Sequence[Mapping[str, str]], limits: Mapping[str, Any], **settings: Any) -> Question:
    """One of VLMEvalKit's messages as a question.

    Args:
        parts: `type` and `value` of each: a text, or the path of a picture, in the order of the prompt. Pictures before
            all text are where the model's chat template puts them.
        limits: see `vlkv_harness.answers.question`.
        **settings: other fields of `Question`.

    Raises:
        EvalError: a part is neither a text nor a picture.
    """
    other = {part["type"] for part in parts} - {"text", "image"}
    if other:
        raise EvalError(
            f"the data set asks about {', '.join(sorted(other))}; vlkv answers about text and pictures"
        )
    kinds = [part["type"] for part in parts]
    placed = "text" in kinds and "image" in kinds[kinds.index("text") :]
    words = [
        PLACE if part["type"] == "image" else part["value"]
        for part in parts
        if placed or part["type"] == "text"
    ]
    pictures = [part["value"] for part in parts if part["type"] == "image"]
    return question("\n".join(words), pictures, limits, **settings)


def scores(request: Request, folder: Path) -> list[Score]:
    """Answers every data set under every setting; the engine is opened once."""
    os.environ["PRED_FORMAT"] = "tsv"
    if request.data is not None:
        os.environ["LMUData"] = request.data  # noqa: SIM112, this is how VLMEvalKit spells it
    data_sets = {task: _data_set(task) for task in request.tasks}
    limits = {"max_new_tokens": request.max_new_tokens}
    found = []
    with Engine.load(request.engine, **request.options) as engine:
        for number, setting in enumerate(request.settings):
            for task, data_set in data_sets.items():
                lines = data_set.data.iloc[: request.samples]
                asked = _questions(data_set, lines, limits, msgspec.to_builtins(setting))
                answered = lines.assign(prediction=answers(engine, asked, request.batch))
                file = folder / f"{task}-{setting.name}.tsv"
                metrics = _evaluate(task, data_set, answered.drop(columns="image", errors="ignore"), file)
                found += [Score(number, task, name, value, len(lines)) for name, value in metrics]
    return found


def _questions(
    data_set: Any, lines: Any, limits: Mapping[str, Any], settings: Mapping[str, Any]
) -> Iterator[Question]:
    return (message(data_set.build_prompt(line), limits, **settings) for _, line in lines.iterrows())


def _data_set(task: str) -> Any:
    """VLMEvalKit's data set of a name; raises `EvalError` where there is none, or vlkv cannot answer it."""
    from vlmeval.dataset import CustomVQADataset, ImageBaseDataset, ImageVQADataset, build_dataset

    class OwnVQADataset(ImageVQADataset):  # type: ignore[misc]
        """A file of the user's own: VLMEvalKit asks its questions, but has no metric for it."""

        build_prompt = ImageBaseDataset.build_prompt

    with _named(f"load {task}"):
        data_set = build_dataset(task)
        if type(data_set) is CustomVQADataset:
            data_set = OwnVQADataset(task)
    if data_set is None:
        raise EvalError(
            f"VLMEvalKit has no data set {task!r}, and --data no file {task}.tsv with a column `question`"
        )
    if data_set.MODALITY == "VIDEO" or data_set.TYPE == "MT":
        raise EvalError(
            f"{task} asks about videos or in several rounds; vlkv answers one question about pictures here"
        )
    return data_set


def _evaluate(task: str, data_set: Any, answered: Any, file: Path) -> list[tuple[str, float]]:
    """Writes the answers, and returns VLMEvalKit's figures of them by name."""
    from vlmeval.smp import dump

    for earlier in file.parent.glob(f"{file.stem}_*"):
        earlier.unlink()
    dump(answered, str(file))
    judge = {"model": "exact_matching"} if data_set.TYPE in BY_RULES else {}
    with _named(f"score {task} (the answers are in {file.name})"):
        found = figures(data_set.evaluate(str(file), **judge))
    if not found:
        raise EvalError(f"VLMEvalKit has no metric for {task}; the answers are in {file.name}")
    return found


def figures(found: Any, name: str = "") -> list[tuple[str, float]]:
    """The finite numbers in what VLMEvalKit returns, by name.

    Args:
        found: a table with a row for each split, or numbers in dictionaries and lists.
        name: of what they belong to.
    """
    if hasattr(found, "to_dict"):
        rows = found.to_dict("records")
        if len(rows) == 1:
            return figures(rows[0], name)
        found = {" ".join(value for value in row.values() if isinstance(value, str)): row for row in rows}
    if isinstance(found, Mapping):
        parts: Iterable[tuple[Any, Any]] = found.items()
    elif isinstance(found, list | tuple):
        parts = enumerate(found, 1)
    else:
        number = isinstance(found, Real) and not isinstance(found, bool) and isfinite(found)
        return [(name, float(found))] if number else []
    return [figure for key, part in parts for figure in figures(part, f"{name} {key}".strip())]


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Turns every error of VLMEvalKit's into one line."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise EvalError(f"VLMEvalKit cannot {what}: {type(error).__name__}: {reason}") from error


if __name__ == "__main__":
    sys.exit(serve(scores))
