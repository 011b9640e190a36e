"""Atomic files, hashes, and printable paths and errors."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from vlkv.errors import EngineError

_CHUNK = 1 << 20
_PIECE = 1 << 24
_FICLONE = 0x40049409
"""Linux's ioctl of that name, of btrfs, XFS and others."""
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


def text_path(path: Path) -> str:
    """Return the path as text for a library that takes UTF-8 only. A path that is not is an `EngineError`."""
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = os.fsencode(path)[len(os.fsencode(text[: error.start]))]
        raise EngineError(
            f"{show(path)}: this path is not UTF-8, its byte 0x{byte:02x} begins no character; rename what it names"
        ) from error
    return text


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


def clone_file(source: Path, target: Path) -> bool:
    """Make `target` share the blocks of `source` until one of them is written, where the file system can.

    Returns whether it could; nothing is left of the target otherwise. Errors are those of `copy_file`.
    """
    with _placing(source, target) as found:
        return _clone(found, target)


def copy_file(source: Path, target: Path, progress: Callable[[int], None] | None = None) -> None:
    """Make `target` a copy of `source`; a symbolic link as source is followed.

    `progress` is called with each piece's number of bytes. `EngineError`: no such source, the target exists, or the
    copy failed (nothing is left of it then).
    """
    with _placing(source, target) as found:
        _copy(found, target, progress)


def link_or_copy(source: Path, target: Path) -> bool:
    """Make `target` a clone of `source`, else a hard link, or a copy across file systems and where links are refused.

    Returns whether it is a hard link. Errors are those of `copy_file`.
    """
    with _placing(source, target) as found:
        if _clone(found, target):
            return False
        try:
            os.link(found, target)
        except OSError as error:
            if error.errno not in _COPY_INSTEAD:
                raise
            _copy(found, target)
            return False
    return True


@contextmanager
def _placing(source: Path, target: Path) -> Iterator[Path]:
    try:
        found = source.resolve(strict=True)
        if not found.is_file():
            raise EngineError(f"{show(found)}: not a file")
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        yield found
    except (OSError, RuntimeError) as error:
        raise EngineError(f"{show(source)} -> {show(target)}: {reason(error)}") from error


def _clone(source: Path, target: Path) -> bool:
    try:
        from fcntl import ioctl
    except ImportError:  # Windows, which has no clones either
        return False
    try:
        with source.open("rb") as read, target.open("xb") as write:
            ioctl(write.fileno(), _FICLONE, read.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        return False
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return True


def _copy(source: Path, target: Path, progress: Callable[[int], None] | None = None) -> None:
    try:
        with source.open("rb") as read, target.open("xb") as write:
            while piece := read.read(_PIECE):
                write.write(piece)
                if progress is not None:
                    progress(len(piece))
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
