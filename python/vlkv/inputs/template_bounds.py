"""How large the values of a chat template may become: what a method or filter would make is known before it runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

CHARACTERS = 1 << 24
"""The most characters of a text."""
LARGEST = 1_000_000
"""The largest number that a method or filter accepts, such as a width, and the most entries of a value."""
BITS = 1 << 16
"""The most bits of an integer that `*` or `**` makes."""

_WIDE = re.compile(r"\d{7}|\*|\{[^{}]+\{")
"""A width of seven digits in a format, or one that an argument gives."""
_TEXTS = (str, bytes)


class TooLargeError(ValueError):
    """A value of a chat template is too large."""


def size(count: int, most: int = CHARACTERS) -> None:
    """Refuse a text of more than `CHARACTERS`, or a value of more than `most` entries."""
    if count > most:
        raise TooLargeError(f"it makes a text or list of {count} entries, the limit is {most}")


def weight(value: object) -> int:
    """The entries and characters of a value; what is in it twice counts twice. Raises `TooLargeError` past the limits.

    Lists in lists double with each step, so that few of them print as more text than there is memory.
    """
    characters, entries, waiting = 0, 0, [value]
    while waiting:
        one = waiting.pop()
        entries += 1
        if isinstance(one, _TEXTS):
            characters += len(one)
        elif isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            waiting += one
        size(characters)
        size(entries + len(waiting), LARGEST)
    return characters + entries


def numbers(values: Sequence[object]) -> None:
    """Refuse arguments above `LARGEST`."""
    for value in values:
        if isinstance(value, int) and abs(value) > LARGEST:
            raise TooLargeError(f"it asks for {value:.6g}, the limit is {LARGEST}")


def operation(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation whose result would be too large."""
    if operator == "%" and isinstance(left, str):
        raise TooLargeError("it formats with %, whose widths are not limited; use ~")
    if isinstance(left, int) and isinstance(right, int):
        if operator in ("*", "**"):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            size(bits, BITS)
    elif operator == "*":
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, str | bytes | list | tuple) and isinstance(times, int):
                if isinstance(sequence, _TEXTS):
                    size(len(sequence) * times)
                else:
                    size(weight(sequence) * times, LARGEST)
    elif operator == "+" and isinstance(left, _TEXTS) and isinstance(right, _TEXTS):
        size(len(left) + len(right))


def made(name: str, value: Any, *arguments: Any, **named: Any) -> None:
    """Refuse the call of a method or filter `name` on `value` whose result would be too large."""
    given = (*arguments, *named.values())
    numbers(given)
    bound = _BOUNDS.get(name)
    if bound is not None:
        bound(value, *given)


def _replaced(value: Any, old: Any = "", new: Any = "", *_: object) -> None:
    text, old, new = (one if isinstance(one, _TEXTS) else str(one) for one in (value, old, new))
    size(len(text) + text.count(old) * len(new))


def _joined(value: Any, items: Any = (), *_: object) -> None:
    """Both `separator.join(items)` and `items|join(separator)`."""
    separator, items = (value, items) if isinstance(value, _TEXTS) else (items, value)
    if isinstance(items, list | tuple | str):
        size(weight(items) + len(items) * (len(separator) if isinstance(separator, _TEXTS) else 1))


def _tabs(value: Any, width: Any = 8, *_: object) -> None:
    size(len(value) + value.count(b"\t" if isinstance(value, bytes) else "\t") * int(width))


def _indented(value: Any, width: Any = 4, *_: object) -> None:
    size(len(value) + len(value.splitlines()) * (len(width) if isinstance(width, str) else int(width)))


def _json(value: Any, *given: object) -> None:
    widths = [len(one) if isinstance(one, str) else one for one in given if isinstance(one, str | int)]
    size(weight(value) * (1 + sum(widths)))


def _format(value: Any, *_: object) -> None:
    if _WIDE.search(str(value)):
        raise TooLargeError(
            "it formats with a width of seven digits or more, or with one that an argument gives"
        )


def _sum(_: object, *given: object) -> None:
    if any(isinstance(one, list | tuple) for one in given):
        raise TooLargeError("it adds up lists, each to a copy of those before it; use +")


def _translated(*_: object) -> None:
    raise TooLargeError("it translates a text by a table; use replace")


_BOUNDS: dict[str, Callable[..., None]] = {
    "replace": _replaced,
    "join": _joined,
    "expandtabs": _tabs,
    "indent": _indented,
    "tojson": _json,
    "format": _format,
    "format_map": _format,
    "sum": _sum,
    "translate": _translated,
}
