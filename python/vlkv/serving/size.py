"""Parses sizes such as `2GiB`."""

from __future__ import annotations

import re

from vlkv.errors import MemoryLimitError

AUTO = "auto"
"""A memory that is derived from what is at hand."""

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_size(text: str) -> int:
    """The bytes of `2GiB`, `512M`, `1.5G` or `1000`; units are powers of 1024. Raises `MemoryLimitError` otherwise."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise MemoryLimitError(f"memory {text!a:.40} is not a size, such as 2GiB, 512M or 1000000")
    return int(float(match.group(1)) * _UNITS[match.group(2).upper()])


def parse_memory(text: str) -> int | None:
    """The same, or None for `auto`."""
    return None if text.strip().lower() == AUTO else parse_size(text)
