"""Where the command line writes: answers to standard output, progress and notes to standard error.

`NO_COLOR` is respected by rich; `--quiet` drops progress and notes, `--verbose` says more.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

MIB = 1 << 20
PLAIN: Any = {"highlight": False, "markup": False, "emoji": False}
"""Texts hold paths and answers: brackets and colons in them are themselves."""


@dataclass
class Verbosity:
    """How much is said: -1 quiet, 0 as usual, 1 verbose. Set once by the command line."""

    level: int = 0


VERBOSITY = Verbosity()


def notes() -> Console:
    """The console for progress and notes."""
    return Console(stderr=True, quiet=VERBOSITY.level < 0, **PLAIN)


def answers() -> Console:
    """The console for what was asked for."""
    return Console(file=sys.stdout, **PLAIN)


def write_json(value: object) -> None:
    """One line of JSON on standard output, in ASCII: whatever the terminal's encoding, it can be read back.

    `value` is what to write, or JSON as bytes.
    """
    value = msgspec.json.decode(value) if isinstance(value, bytes) else value
    sys.stdout.write(json.dumps(msgspec.to_builtins(value), separators=(",", ":")) + "\n")


@contextmanager
def whole_output() -> Iterator[None]:
    """Sees to it that what is written to standard output arrives, or that an `OSError` says why not.

    Characters that its encoding does not have are written as escapes, rather than ending an answer in its middle.
    """
    if sys.stdout is None:
        raise OSError(errno.EBADF, "standard output is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        _drop_output(sys.stdout)
        if isinstance(error, BrokenPipeError) or error.filename is not None:
            raise
        raise OSError(error.errno, f"the output can't be written: {error.strerror}") from error


def _drop_output(stream: object) -> None:
    """What is left in the buffer goes nowhere, so that the interpreter does not fail on it at its end."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, cast(io.TextIOWrapper, stream).fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        return


class Bar:
    """A line that says what is being done, with a bar where the amount is known."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task

    def step(self, name: str) -> None:
        """Begins a step of unknown length."""
        if VERBOSITY.level > 0:
            self._bar.console.print(name)
        self._bar.update(self._task, description=name, total=None, completed=0)

    def total(self, size: int) -> None:
        """Says how many units the step has."""
        self._bar.update(self._task, total=size, completed=0)

    def advance(self, done: int) -> None:
        """Adds units that are done."""
        self._bar.update(self._task, advance=done)

    def done(self, text: str) -> None:
        """Ends with a note."""
        self._bar.update(self._task, visible=False)
        self._bar.console.print(text, soft_wrap=True)


@contextmanager
def progress(*, data: bool = True, remaining: bool = False) -> Iterator[Bar]:
    """A progress line on standard error, gone when it ends. `data` shows bytes, otherwise counts.

    `remaining` adds the time that is left.
    """
    amount = DownloadColumn(binary_units=True) if data else TextColumn("{task.completed:.0f}/{task.total}")
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        amount,
        TimeElapsedColumn(),
        *([TextColumn("left"), TimeRemainingColumn()] if remaining else ()),
    )
    console = notes()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Bar(bar, bar.add_task("", total=None))
