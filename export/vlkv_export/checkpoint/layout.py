"""Canonical names of tensors, and the shapes of linear layers and norms."""

from __future__ import annotations

from collections.abc import Iterator

Shape = tuple[int, ...]
EMBEDDING = "text.embed_tokens.weight"
HEAD = "lm_head.weight"


def linear(name: str, outputs: int, inputs: int, bias: bool) -> Iterator[tuple[str, Shape]]:
    """Weight `[outputs, inputs]` and, with `bias`, bias `[outputs]` of a linear layer."""
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def norm(name: str, size: int) -> Iterator[tuple[str, Shape]]:
    """Weight and bias `[size]` of a layer norm."""
    yield f"{name}.weight", (size,)
    yield f"{name}.bias", (size,)
