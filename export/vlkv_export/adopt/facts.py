"""What is known of a foreign decoder before its graph is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """A folder with a decoder that another exporter wrote, and what its configuration says of it.

    Fields:
        folder, graph: the folder, and the decoder's file in it.
        exporter: whose layout the folder has, as errors and the manifest name it.
        architecture: of the text model, `model_type`.
        past, present: patterns of the caches' names, `%d` for the layer, key first.
        logits: the name of the output with logits `[B,S,V]`.
        sizes: layers, query heads, key/value heads, head dimension, hidden size, vocabulary, positions.
        sliding_window: tokens that a query sees; None: all.
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
