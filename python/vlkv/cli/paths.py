"""Paths that a command is given. An empty one, as of a variable that is not set, would be the current folder."""

from __future__ import annotations

from pathlib import Path

import typer


def path(text: str | Path) -> Path:
    """Make a path of an argument or option's text. Raises `typer.BadParameter` for an empty one."""
    if not str(text):
        raise typer.BadParameter("the path is empty; . is the current folder")
    return Path(text)
