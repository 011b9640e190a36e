"""The question of a command: an argument, a file, or standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vlkv.cli.paths import path
from vlkv.errors import PromptError
from vlkv.storage.files import reason, show

Prompt = Annotated[
    str | None,
    typer.Option(
        help="The question; <image> says where a picture goes, <video> a video.", show_default=False
    ),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        help="A file in UTF-8 with the question, - for standard input; a newline at its end is no part of it.",
        show_default=False,
        allow_dash=True,
        parser=path,
    ),
]
MAX_BYTES = 64 << 20
"""Of a file: more than any model has positions for."""


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The question's text, of which exactly one source was given. Raises `PromptError`."""
    if prompt is not None and file is not None:
        raise PromptError("--prompt and --prompt-file were both given; one of them is the question")
    if prompt is not None:
        return prompt
    if file is None:
        raise PromptError("no question was given: --prompt TEXT, --prompt-file FILE, or --prompt-file -")
    name = "standard input" if str(file) == "-" else show(file)
    data = _read(file, name)
    if len(data) > MAX_BYTES:
        raise PromptError(f"{name} is longer than {MAX_BYTES >> 20} MiB, the limit of a prompt")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise PromptError(f"{name} is not UTF-8: byte {error.start} is 0x{byte:02x}") from error
    return text.removesuffix("\n").removesuffix("\r")


def _read(file: Path, name: str) -> bytes:
    """The file, or a little more than the limit of it."""
    try:
        if str(file) != "-":
            with file.open("rb") as opened:
                return opened.read(MAX_BYTES + 1)
        if sys.stdin is None:
            raise PromptError("standard input is closed")
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise PromptError(f"{name}: {reason(error)}") from error
