"""The record of a foreign decoder's folder, which is read before its graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """A folder with a decoder that another exporter wrote, and the facts of its configuration.

    Fields:
        folder, graph: the folder, and the decoder's file in it.
        exporter: the exporter, by its name in errors and in the manifest.
        architecture: the text model's `model_type`.
        past, present: patterns of the caches' names, with `%d` for the layer, keys first.
        logits: the name of the output with logits `[B,S,V]`.
        sizes: layers, query heads, key/value heads, head dimension, hidden size, vocabulary, positions.
        sliding_window: the sliding window in tokens, or None.
        embedding, vision: the files of the token embedding and of the vision tower, where they are apart; or None.
    """

    folder: Path
    graph: Path
    exporter: str
    architecture: str
    past: tuple[str, str]
    present: tuple[str, str]
    logits: str
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    max_positions: int
    sliding_window: int | None
    embedding: Path | None = None
    vision: Path | None = None
