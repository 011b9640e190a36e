"""Which tensors a LLaVA model has, by canonical name, and their shapes."""

from __future__ import annotations

from collections.abc import Iterator

from vlkv_export.checkpoint.facts import Projector, TextConfig, VisionConfig

Shape = tuple[int, ...]
EMBEDDING = "text.embed_tokens.weight"
HEAD = "lm_head.weight"


def expected(vision: VisionConfig, projector: Projector, text: TextConfig) -> Iterator[tuple[str, Shape]]:
    """Canonical name and shape of every tensor that the graphs use, in the order of use.

    Linear weights are `[outputs, inputs]`. Of the tower, only the layers that the features need.
    """
    yield from _vision(vision)
    yield from _linear(
        "projector.linear_1", text.hidden, vision.hidden * len(vision.feature_layers), projector.bias
    )
    yield from _linear("projector.linear_2", text.hidden, text.hidden, projector.bias)
    yield EMBEDDING, (text.vocab, text.hidden)
    for layer in range(text.layers):
        yield from _text_layer(f"text.layers.{layer}", text)
    yield "text.norm.weight", (text.hidden,)
    yield HEAD, (text.vocab, text.hidden)


def unexpected_biases(text: TextConfig) -> Iterator[str]:
    """Canonical names of the biases that the configuration says do not exist."""
    for layer in range(text.layers):
        if not text.attention_bias:
            yield from (f"text.layers.{layer}.self_attn.{part}_proj.bias" for part in "qkvo")
        if not text.mlp_bias:
            yield from (f"text.layers.{layer}.mlp.{part}_proj.bias" for part in ("gate", "up", "down"))


def _linear(name: str, outputs: int, inputs: int, bias: bool) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _norm(name: str, size: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (size,)
    yield f"{name}.bias", (size,)


def _vision(vision: VisionConfig) -> Iterator[tuple[str, Shape]]:
    hidden, patch = vision.hidden, vision.patch_size
    yield "vision.embeddings.class_embedding", (hidden,)
    yield "vision.embeddings.patch_embedding.weight", (hidden, vision.channels, patch, patch)
    yield "vision.embeddings.position_embedding.weight", (vision.patches + 1, hidden)
    yield from _norm("vision.pre_layrnorm", hidden)
    for layer in range(vision.used_layers):
        name = f"vision.encoder.layers.{layer}"
        yield from _norm(f"{name}.layer_norm1", hidden)
        for part in ("q", "k", "v", "out"):
            yield from _linear(f"{name}.self_attn.{part}_proj", hidden, hidden, True)
        yield from _norm(f"{name}.layer_norm2", hidden)
        yield from _linear(f"{name}.mlp.fc1", vision.intermediate, hidden, True)
        yield from _linear(f"{name}.mlp.fc2", hidden, vision.intermediate, True)


def _text_layer(name: str, text: TextConfig) -> Iterator[tuple[str, Shape]]:
    queries, keys = text.query_heads * text.head_dim, text.kv_heads * text.head_dim
    yield f"{name}.input_layernorm.weight", (text.hidden,)
    for part, outputs in (("q", queries), ("k", keys), ("v", keys)):
        yield from _linear(f"{name}.self_attn.{part}_proj", outputs, text.hidden, text.attention_bias)
    yield from _linear(f"{name}.self_attn.o_proj", text.hidden, queries, text.attention_bias)
    yield f"{name}.post_attention_layernorm.weight", (text.hidden,)
    for part in ("gate", "up"):
        yield from _linear(f"{name}.mlp.{part}_proj", text.intermediate, text.hidden, text.mlp_bias)
    yield from _linear(f"{name}.mlp.down_proj", text.hidden, text.intermediate, text.mlp_bias)
