"""Sizes of small text models, without a checkpoint."""

from __future__ import annotations

from vlkv.storage.manifest import TextFacts


def small_text(layers, query_heads, kv_heads, head_dim):
    """Returns the facts of a model of these sizes."""
    return TextFacts(
        architecture="llama",
        layers=layers,
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=query_heads * head_dim,
        vocab=64,
        max_positions=512,
    )
