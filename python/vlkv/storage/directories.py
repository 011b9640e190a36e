"""Atomic directories: they appear complete or not at all, and replace only directories of vlkv."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlkv.errors import EngineError
from vlkv.storage.files import reason, show
from vlkv.storage.manifest import is_manifest


def check_target(target: Path) -> None:
    """Raise `EngineError` unless `target` does not exist, is empty, or holds a vlkv manifest."""
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise EngineError(f"{show(target)} exists and is not a directory")
    if any(target.iterdir()) and not is_manifest(target):
        raise EngineError(f"{show(target)} exists, is not empty and holds no vlkv manifest: not replaced")


def check_apart(source: Path, target: Path) -> None:
    """Raise `EngineError` where replacing `target` would remove `source`: they are the same, or one holds the other."""
    from_, to = Path(os.path.realpath(source)), Path(os.path.realpath(target))
    if to == from_ or to in from_.parents:
        raise EngineError(f"{show(target)} can't be written from {show(source)}, which it would replace")


@contextmanager
def new_directory(target: Path, overwrite: bool = True) -> Iterator[Path]:
    """Make a directory to fill. It becomes `target` when the block succeeds, and is removed when the block fails.

    It is created beside the target under a hidden name, so that the last step is a rename. A target that is empty or
    holds a vlkv manifest is replaced (with `overwrite=False` only an empty one); any other target is an `EngineError`,
    raised before the block is entered. Missing parents are made, and removed on failure.
    """
    target = Path(os.path.realpath(target))
    try:
        check_target(target)
        if not overwrite and target.is_dir() and any(target.iterdir()):
            raise EngineError(f"{show(target)} exists and is not empty: not replaced")
        made = _make_parents(target)
        beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        try:
            beside.mkdir()
        except BaseException:
            _remove_parents(made)
            raise
    except OSError as error:
        raise EngineError(f"{show(target)}: {reason(error)}") from error
    try:
        yield beside
        try:
            _put(beside, target)
        except OSError as error:
            raise EngineError(f"{show(target)}: {reason(error)}") from error
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        _remove_parents(made)
        raise


def _make_parents(target: Path) -> list[Path]:
    missing = [parent for parent in target.parents if not parent.exists()]
    made: list[Path] = []
    try:
        for parent in reversed(missing):
            parent.mkdir()
            made.insert(0, parent)
    except BaseException:
        _remove_parents(made)
        raise
    return made


def _remove_parents(made: list[Path]) -> None:
    for parent in made:
        try:
            parent.rmdir()
        except OSError:
            return


def _put(beside: Path, target: Path) -> None:
    """Rename `beside` to `target`; an existing target is removed only after that."""
    check_target(target)
    if not target.is_dir():
        beside.rename(target)
        return
    old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    target.rename(old)
    try:
        beside.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
