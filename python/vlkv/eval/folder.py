"""The task `folder`: a user's own pictures, in a JSONL file with one sample per line.

    {"image": "a.png", "question": "What is the total?", "answer": "12.50"}

`image` (or `images`) is a path relative to the file, or a list of paths; `question` and `answer` are texts, or lists of
equal length for successive questions. Blank and malformed lines are refused with their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from vlkv.errors import EvalError
from vlkv.storage.files import reason, show

FIELDS = ("image", "images", "question", "answer")


@dataclass(frozen=True)
class Line:
    """One sample: pictures, and questions with expected answers."""

    images: tuple[Path, ...]
    turns: tuple[tuple[str, str], ...]


def read_folder(data: Path, turns: int = 1) -> list[Line]:
    """Reads a JSONL file, or the only one in a folder; takes the first `turns` questions of each line.

    Raises:
        EvalError: the file or folder does not exist, has no lines, or a line is invalid; the error gives its number.
    """
    path = data_file(data)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise EvalError(f"{show(path)}: {reason(error)}") from error
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise EvalError(f"{show(path)} has no lines; a line looks like {_EXAMPLE}")
    return [
        _line(line, f"{show(path)} line {number}", path.parent, turns) for number, line in enumerate(lines, 1)
    ]


_EXAMPLE = '{"image": "a.png", "question": "...", "answer": "..."}'


def data_file(data: Path) -> Path:
    """The given JSONL file, or the only one in a folder."""
    if not data.exists():
        raise EvalError(f"{show(data)} does not exist")
    if not data.is_dir():
        return data
    found = sorted(data.glob("*.jsonl"))
    if len(found) != 1:
        raise EvalError(
            f"{show(data)} holds {len(found)} .jsonl files; give a folder with one, or the file itself"
        )
    return found[0]


def _line(text: str, where: str, base: Path, turns: int) -> Line:
    if not text.strip():
        raise EvalError(f"{where} is empty; a line looks like {_EXAMPLE}")
    try:
        record = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise EvalError(f"{where}: {reason(error)}") from error
    if not isinstance(record, dict):
        raise EvalError(f"{where} is not an object; a line looks like {_EXAMPLE}")
    unknown = [name for name in record if name not in FIELDS]
    if unknown:
        raise EvalError(f"{where}: unknown field {show(unknown[0])!r}; known: {', '.join(FIELDS)}")
    images = _texts(record, "images" if "images" in record else "image", where)
    questions, answers = (_texts(record, name, where) for name in ("question", "answer"))
    if len(questions) != len(answers):
        raise EvalError(f"{where} has {len(questions)} questions and {len(answers)} answers")
    if len(questions) < turns:
        raise EvalError(f"{where} has {len(questions)} question, {turns} are needed; give a list")
    paths = tuple(base / name for name in images)
    for path in paths:
        if not path.is_file():
            raise EvalError(f"{where}: {show(path)} is not a file")
    return Line(paths, tuple(zip(questions, answers, strict=True))[:turns])


def _texts(record: dict[str, Any], name: str, where: str) -> list[str]:
    value = record.get(name)
    given = value if isinstance(value, list) else [value]
    texts = [text for text in given if isinstance(text, str)]
    if not given or len(texts) < len(given):
        raise EvalError(f"{where}: {name} is neither a text nor a list of texts")
    if name == "question" and not all(text.strip() for text in texts):
        raise EvalError(f"{where}: question is empty")
    return texts
