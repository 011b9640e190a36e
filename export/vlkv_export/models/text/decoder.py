"""What Llama-like decoders share: the reader of `text_config`, and the tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vlkv.errors import CheckpointError
from vlkv.storage.manifest import MAX_LAYERS
from vlkv_export.checkpoint.facts import TextConfig
from vlkv_export.checkpoint.fields import Fields, show
from vlkv_export.checkpoint.layout import EMBEDDING, HEAD, Shape, linear
from vlkv_export.checkpoint.rope import read_rope
from vlkv_export.checkpoint.settings import MAX_HEAD_DIM, MAX_HEADS, read_activation

ATTENTION = ("q", "k", "v", "o")
MLP = ("gate", "up", "down")
SLIDING = "sliding_attention"


@dataclass(frozen=True)
class Defaults:
    """Values that transformers assumes for fields that `text_config` lacks.

    `kv_heads` None means as many KV heads as query heads. `window` None means that the model has no
    sliding window. With `from_layer` only some layers have one: those of `layer_types`, or else those with the number
    `max_window_layers` and above.
    """

    architecture: str
    intermediate: int
    max_positions: int
    kv_heads: int | None
    window: int | None
    from_layer: int | None = None
    vocab: int = 32000
    hidden: int = 4096
    layers: int = 32
    query_heads: int = 32
    head_dim: int | None = None
    activation: str = "silu"
    tied: bool = False
    eps: float = 1e-6


def read_decoder(config: Fields, text: Fields, defaults: Defaults, biases: frozenset[str]) -> TextConfig:
    """Read `text_config`; `biases` names the projections with a bias. Raises `CheckpointError`."""
    hidden = text.integer("hidden_size", defaults.hidden)
    query_heads = text.integer("num_attention_heads", defaults.query_heads, high=MAX_HEADS)
    absent = "num_key_value_heads" not in text.values
    grouped = defaults.kv_heads if defaults.kv_heads and absent else query_heads
    kv_heads = text.integer("num_key_value_heads", grouped, high=MAX_HEADS)
    if query_heads % kv_heads:
        raise CheckpointError(
            f"{text.where}: num_attention_heads {query_heads} is not a multiple of "
            f"num_key_value_heads {kv_heads}"
        )
    if "head_dim" not in text and defaults.head_dim is None and hidden % query_heads:
        raise CheckpointError(
            f"{text.where}: hidden_size {hidden} is not a multiple of num_attention_heads {query_heads}, "
            "and there is no head_dim"
        )
    head_dim = text.integer("head_dim", defaults.head_dim or hidden // query_heads, high=MAX_HEAD_DIM)
    if head_dim % 2:
        raise CheckpointError(f"{text.where}: head_dim {head_dim} is odd; rotary embedding needs an even one")
    positions = text.integer("max_position_embeddings", defaults.max_positions, high=1 << 30)
    layers = text.integer("num_hidden_layers", defaults.layers, high=MAX_LAYERS)
    rope = read_rope(text, head_dim, positions)
    positions = positions if rope.positions is None else min(positions, rope.positions)
    return TextConfig(
        architecture=defaults.architecture,
        hidden=hidden,
        layers=layers,
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=text.integer("intermediate_size", defaults.intermediate),
        activation=read_activation(text, "hidden_act", defaults.activation),
        eps=text.number("rms_norm_eps", defaults.eps, high=1.0),
        vocab=text.integer("vocab_size", defaults.vocab),
        max_positions=positions,
        rope=rope,
        tied=config.boolean("tie_word_embeddings", False)
        or text.boolean("tie_word_embeddings", defaults.tied),
        biases=biases,
        windows=_windows(text, defaults, layers, positions),
    )


def _windows(text: Fields, defaults: Defaults, layers: int, positions: int) -> tuple[int, ...]:
    """Tokens that each layer sees, 0 for all; empty where no window is shorter than the model has positions."""
    if defaults.window is None:
        return ()
    there = [SLIDING] * layers
    if defaults.from_layer is not None:
        on = text.boolean("use_sliding_window", False)
        first = text.integer("max_window_layers", defaults.from_layer, low=0, high=1 << 30)
        there = [SLIDING if on and layer >= first else "full_attention" for layer in range(layers)]
        if text.values.get("layer_types") is not None:
            there = _layer_types(text, layers)
        if not on and SLIDING in there:
            raise CheckpointError(
                f"{text.where}: layer_types has {SLIDING!r}, and use_sliding_window is false; set it to true"
            )
    if SLIDING not in there or text.values.get("sliding_window", defaults.window) is None:
        return ()
    window = text.integer("sliding_window", defaults.window, low=2, high=1 << 30)
    return tuple(window if kind == SLIDING else 0 for kind in there) if window < positions else ()


def _layer_types(text: Fields, layers: int) -> list[str]:
    types = text.values["layer_types"]
    known = (SLIDING, "full_attention")
    if not isinstance(types, list) or len(types) != layers or any(kind not in known for kind in types):
        raise CheckpointError(
            f"{text.where}: layer_types {show(types)} is not supported; it has to name one of {', '.join(known)} "
            f"for each of the {layers} layers"
        )
    return types


def tensors(text: TextConfig) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the embedding, the layers, the final norm and the head."""
    yield EMBEDDING, (text.vocab, text.hidden)
    for layer in range(text.layers):
        yield from _layer(f"text.layers.{layer}", text)
    yield "text.norm.weight", (text.hidden,)
    yield HEAD, (text.vocab, text.hidden)


def unexpected_biases(text: TextConfig) -> Iterator[str]:
    """Canonical names of the biases that the configuration says do not exist."""
    for layer in range(text.layers):
        for block, parts in (("self_attn", ATTENTION), ("mlp", MLP)):
            absent = (part for part in parts if part not in text.biases)
            yield from (f"text.layers.{layer}.{block}.{part}_proj.bias" for part in absent)


def _layer(name: str, text: TextConfig) -> Iterator[tuple[str, Shape]]:
    queries, keys = text.query_heads * text.head_dim, text.kv_heads * text.head_dim
    yield f"{name}.input_layernorm.weight", (text.hidden,)
    for part, outputs in (("q", queries), ("k", keys), ("v", keys)):
        yield from linear(f"{name}.self_attn.{part}_proj", outputs, text.hidden, part in text.biases)
    yield from linear(f"{name}.self_attn.o_proj", text.hidden, queries, "o" in text.biases)
    if text.head_norms:
        yield from ((f"{name}.self_attn.{part}_norm.weight", (text.head_dim,)) for part in "qk")
    yield f"{name}.post_attention_layernorm.weight", (text.hidden,)
    for part in ("gate", "up"):
        yield from linear(f"{name}.mlp.{part}_proj", text.intermediate, text.hidden, part in text.biases)
    yield from linear(f"{name}.mlp.down_proj", text.hidden, text.intermediate, "down" in text.biases)
