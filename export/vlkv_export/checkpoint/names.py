"""Maps the names of stored tensors to the canonical names that graphs use."""

from __future__ import annotations

import re
from collections.abc import Iterable

Prefixes = Iterable[tuple[re.Pattern[str], str]]


def canonical(name: str, prefixes: Prefixes) -> str | None:
    """Return the canonical name of a stored tensor; None if it belongs to no part of the model."""
    for pattern, prefix in prefixes:
        match = pattern.match(name)
        if match:
            return prefix + name[match.end() :]
    return None
