"""The pruning methods by name. A new method is a file like `duplicates.py` and one line here."""

from __future__ import annotations

from collections.abc import Callable

from vlkv.errors import PolicyError, quoted
from vlkv.pruning.blank import Blank
from vlkv.pruning.diverse import Diverse
from vlkv.pruning.duplicates import Duplicates
from vlkv.pruning.picture import Pruner
from vlkv.pruning.relevant import Relevant

METHODS: dict[str, Callable[[], Pruner]] = {"duplicates": Duplicates, "blank": Blank}
"""Methods without settings, as in `duplicates`."""

BY_SHARE: dict[str, Callable[[float], Pruner]] = {method.name: method for method in (Diverse, Relevant)}
"""Methods that take the share of a picture's tokens to keep, as in `diverse:0.25`."""


def resolve_prune(text: str | None) -> Pruner | None:
    """The method of that name, such as `duplicates` or `diverse:0.25`; None prunes nothing.

    Raises `PolicyError`, which lists all methods, if it is unknown or its share is not a number in (0, 1].
    """
    if text is None:
        return None
    name, colon, share = str(text).partition(":")
    if not colon and name in METHODS:
        return METHODS[name]()
    known = ", ".join([*METHODS, *(f"{method}:SHARE" for method in BY_SHARE)])
    if not colon or name not in BY_SHARE:
        raise PolicyError(f"unknown prune {quoted(text)}; known: {known}")
    try:
        number = float(share)
    except ValueError:
        raise PolicyError(f"prune {quoted(text)}: {quoted(share)} is not a number; known: {known}") from None
    return BY_SHARE[name](number)
