"""Atomic files, hashes, and printable paths and errors."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vlkv.errors import EngineError

_CHUNK = 1 << 20
_THREADS = 4
_COPY_INSTEAD = {
    errno.EXDEV,
    errno.EPERM,
    errno.EACCES,
    errno.EMLINK,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
}


def show(path: object) -> str:
    """Return the path (or any text) as one printable line, with control characters escaped."""
    text = os.fsdecode(path) if isinstance(path, bytes) else str(path)
    return text if text and text.isprintable() else ascii(text)


def reason(error: BaseException) -> str:
    """Return an exception's message as one printable line, without the path and number of an `OSError`."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return show((lines[0] if lines else type(error).__name__)[:200])


def hash_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Return a file's SHA-256 in lower-case hexadecimal, read in pieces.

    `progress` is called with each piece's number of bytes. A file that can't be read is an `EngineError`.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
                if progress is not None:
                    progress(len(piece))
    except OSError as error:
        raise EngineError(f"{show(path)}: {reason(error)}") from error
    return digest.hexdigest()


def hash_files(paths: Iterable[Path], progress: Callable[[int], None] | None = None) -> dict[Path, str]:
    """Hash several files in threads; `progress` is called from those threads."""
    listed = list(paths)
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        try:
            return dict(zip(listed, pool.map(lambda path: hash_file(path, progress), listed), strict=True))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def link_or_copy(source: Path, target: Path) -> bool:
    """Make `target` a hard link to `source`, or a copy if linking is impossible.

    A symbolic link as source is followed, so that the target is the file itself. Returns whether it linked. Raises
    `EngineError` if the source does not exist, the target exists, or the copy failed, which leaves nothing behind.
    """
    try:
        source = source.resolve(strict=True)
        if not source.is_file():
            raise EngineError(f"{show(source)}: not a file")
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in _COPY_INSTEAD:
                raise
            _copy(source, target)
            return False
    except (OSError, RuntimeError) as error:
        raise EngineError(f"{show(source)} -> {show(target)}: {reason(error)}") from error
    return True


def _copy(source: Path, target: Path) -> None:
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    try:
        shutil.copyfile(source, target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old content or the whole new one. `EngineError` on failure."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            with beside.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise EngineError(f"{show(path)}: {reason(error)}") from error
