"""Positions of an engine whose attention has no sliding windows: prompt and answer end within the smallest one."""

from __future__ import annotations

import msgspec

from vlkv.storage.manifest import TextFacts


def inside_window(text: TextFacts) -> TextFacts:
    """The same where prompts and answers end inside the smallest window."""
    windows = [window for window in text.layer_windows if window]
    if not windows:
        return text
    most, smallest = min(text.max_positions, *windows), min(windows)
    return msgspec.structs.replace(text, max_positions=most, sliding_window=smallest, layer_windows=())
