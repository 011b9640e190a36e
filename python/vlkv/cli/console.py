"""The command line's output: answers go to standard output, progress and notes to standard error.

rich respects `NO_COLOR`; `--quiet` suppresses progress and notes, `--verbose` adds details.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
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
"""No markup: brackets and colons in paths and answers are printed literally."""


@dataclass
class Verbosity:
    """The level of output: -1 quiet, 0 normal, 1 verbose. The command line sets it once."""

    level: int = 0


VERBOSITY = Verbosity()


def notes() -> Console:
    """The console for progress and notes."""
    return Console(stderr=True, quiet=VERBOSITY.level < 0, **PLAIN)


def details(lines: Iterable[str]) -> None:
    """Prints lines on standard error if verbose output was asked for."""
    if VERBOSITY.level > 0:
        for line in lines:
            notes().print(line, soft_wrap=True)


def answers() -> Console:
    """The console for results."""
    return Console(file=sys.stdout, **PLAIN)


def write_json(value: object) -> None:
    """Writes one line of JSON to standard output, in ASCII, so that it is valid in every encoding.

    `value` is the object to write, or JSON as bytes.
    """
    value = msgspec.json.decode(value) if isinstance(value, bytes) else value
    sys.stdout.write(json.dumps(msgspec.to_builtins(value), separators=(",", ":")) + "\n")


@contextmanager
def whole_output() -> Iterator[None]:
    """Ensures that standard output is written completely; raises `OSError` if it can't be.

    Characters that the encoding lacks are written as escapes instead of ending the output.
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
    """Discards the stream's buffer, so that the interpreter does not fail on it at exit."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, cast(io.TextIOWrapper, stream).fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        return


class Bar:
    """A progress line that names the step, with a bar if the amount is known."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task

    def step(self, name: str) -> None:
        """Begins a step of unknown length."""
        if VERBOSITY.level > 0:
            self._bar.console.print(name)
        self._bar.update(self._task, description=name, total=None, completed=0)

    def total(self, size: int) -> None:
        """Sets the number of units of the step."""
        self._bar.update(self._task, total=size, completed=0)

    def advance(self, done: int) -> None:
        """Adds finished units."""
        self._bar.update(self._task, advance=done)

    def done(self, text: str) -> None:
        """Ends the progress with a note."""
        self._bar.update(self._task, visible=False)
        self._bar.console.print(text, soft_wrap=True)


@contextmanager
def progress(*, data: bool = True, remaining: bool = False) -> Iterator[Bar]:
    """Shows a progress line on standard error while the block runs. `data` shows bytes, else counts.

    `remaining` adds the remaining time.
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
