"""Typed look-ups in JSON objects, with errors that name the file, the field and the value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlkv.errors import CheckpointError
from vlkv.storage.files import show as printable

LFS = b"version https://git-lfs"
MAX_JSON_BYTES = 256 << 20
MAX_INTEGER = 1 << 24


def show(value: object) -> str:
    """Write a value for a one-line message, truncated if it is long."""
    try:
        text = repr(value)
    except RecursionError:
        return "nested too deeply"
    return text if len(text) <= 80 else text[:77] + "..."


def read_bytes(path: Path) -> bytes:
    """Read a whole small file. Raises `CheckpointError` if it can't be read or is too large."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB, so it is not the file that its name says"
            )
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
    if data.startswith(LFS):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file; fetch it with `git lfs pull`")
    return data


def read_text(path: Path) -> str:
    """Read a small UTF-8 file. Raises `CheckpointError`."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text (byte {error.start})") from None


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object. Raises `CheckpointError`, which begins with `where`, for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(f"{where} is not valid JSON: {reason}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} holds {show(value)}, not a JSON object")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object. Raises `CheckpointError`."""
    return parse_object(read_bytes(path), str(path))


class Fields:
    """One JSON object. An absent or null field has its default; a field of a wrong type is an error."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def get(self, name: str) -> Any:
        """Return the value as it is; None if absent."""
        return self.values.get(name)

    def fail(self, name: str, wanted: str) -> CheckpointError:
        """Make the error that names the found and the wanted value."""
        field = printable(name)[:80]
        return CheckpointError(f"{self.where}: {field} is {show(self.values.get(name))}; it must be {wanted}")

    def integer(self, name: str, default: int | None = None, low: int = 1, high: int = MAX_INTEGER) -> int:
        """Return an integer from `low` to `high`."""
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fail(name, f"an integer from {low} to {high}")
        return value

    def number(
        self, name: str, default: float | None = None, above: float = 0.0, high: float = 1e30
    ) -> float:
        """Return a finite number above `above`, at most `high`."""
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= high:
            raise self.fail(name, f"a number above {above:g} and at most {high:g}")
        value = float(value)
        if not math.isfinite(value):
            raise self.fail(name, "finite")
        return value

    def boolean(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.fail(name, "true or false")
        return value

    def string(self, name: str, default: str | None = None) -> str:
        """Return a string."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self.fail(name, "a string")
        return value

    def child(self, name: str, default: Mapping[str, Any] | None = None) -> Fields:
        """Return a nested object."""
        value = self.values.get(name)
        value = (default or {}) if value is None else value
        if not isinstance(value, Mapping):
            raise self.fail(name, "a JSON object")
        return Fields(value, f"{self.where}: {name}")
