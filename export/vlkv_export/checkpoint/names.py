"""Names of stored tensors to the one canonical name that the graphs are built with."""

from __future__ import annotations

import re
from collections.abc import Iterable

Prefixes = Iterable[tuple[re.Pattern[str], str]]


def canonical(name: str, prefixes: Prefixes) -> str | None:
    """Return the canonical name of a stored tensor; None where it belongs to no part of the model."""
    for pattern, prefix in prefixes:
        match = pattern.match(name)
        if match:
            return prefix + name[match.end() :]
    return None
