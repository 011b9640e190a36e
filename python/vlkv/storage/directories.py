"""Atomic directories: they appear complete or not at all, and replace only directories of vlkv."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vlkv.errors import EngineError
from vlkv.storage.files import reason, show
from vlkv.storage.manifest import is_manifest

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NEW_SECONDS = 60.0
"""A hidden directory that was changed so lately is not taken for abandoned."""


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

    It is created beside the target under a hidden name, so that the last step is a rename; what a killed process left
    there of the same target is removed. A target that is empty or holds a vlkv manifest is replaced (with
    `overwrite=False` only an empty one); any other target is an `EngineError`, raised before the block is entered.
    Missing parents are made, and removed on failure.
    """
    target = Path(os.path.realpath(target))
    made: list[Path] = []
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    with ExitStack() as stack:
        stack.callback(_clean, beside, made)
        try:
            check_target(target)
            if not overwrite and target.is_dir() and any(target.iterdir()):
                raise EngineError(f"{show(target)} exists and is not empty: not replaced")
            _make_parents(target, made)
            _remove_abandoned(target)
            beside.mkdir()
            stack.callback(os.close, _locked(beside))
        except OSError as error:
            raise EngineError(f"{show(target)}: {reason(error)}") from error
        yield beside
        try:
            _put(beside, target)
        except OSError as error:
            raise EngineError(f"{show(target)}: {reason(error)}") from error
        made.clear()


def _clean(beside: Path, made: list[Path]) -> None:
    try:
        _remove(beside)
    finally:
        _remove_parents(made)


def _remove(folder: Path) -> None:
    """Removes a directory whole, if it is there. What interrupts it, such as a second Ctrl-C, is raised after that."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        _remove(folder)
        raise


def _locked(folder: Path) -> int:
    """Opens a directory and locks it: it is one's own as long as the process lives. Returns the file descriptor."""
    opened = os.open(folder, os.O_RDONLY)
    if fcntl is not None:
        with suppress(OSError):  # some file systems know no locks
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return opened


def _remove_abandoned(target: Path) -> None:
    """Removes what writers of this target left that were killed; a living one holds a lock."""
    if fcntl is None:
        return
    for folder in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}.part"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime < NEW_SECONDS:  # its lock may be about to come
                continue
            opened = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(opened)


def _make_parents(target: Path, made: list[Path]) -> None:
    """Makes missing parents and puts them into `made`, the deepest first."""
    for parent in reversed([parent for parent in target.parents if not parent.exists()]):
        made.insert(0, parent)
        parent.mkdir()


def _remove_parents(made: list[Path]) -> None:
    for parent in made:
        with suppress(OSError):
            parent.rmdir()


def _put(beside: Path, target: Path) -> None:
    """Rename `beside` to `target`; an existing target is removed only after that."""
    check_target(target)
    if not target.is_dir():
        beside.rename(target)
        return
    old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    try:
        target.rename(old)
        beside.rename(target)
    finally:
        if os.path.lexists(target):
            _remove(old)
        else:
            old.rename(target)
