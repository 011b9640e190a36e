"""Layers with a sliding window: what they hold of a prompt and its answer.

A token at position p sees positions p - window + 1 to p. So between two tokens a layer holds window - 1 tokens at most,
and while one runs a slot more: the newest token then takes the slot of the one that leaves. L layers, 0 no window.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlkv.storage.manifest import TextFacts

Windows = tuple[int, ...]


def reached(text: TextFacts, tokens: int | None) -> Windows:
    """The windows `[L]` that a prompt and answer of so many tokens grow past, 0 for others; None for any number."""
    windows = text.layer_windows or (0,) * text.layers
    return tuple(window if tokens is None or tokens > window else 0 for window in windows)


def kept_within(tokens: int, window: int) -> int:
    """Of so many tokens of a prompt those that a layer may keep."""
    return min(tokens, window - 1) if window else tokens


def slots_within(tokens: int, windows: Sequence[int]) -> list[int]:
    """Slots that each layer takes, `[L]`, for so many tokens."""
    return [min(tokens, window) if window else tokens for window in windows]
