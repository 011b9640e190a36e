"""`config.json`: sizes of the tower, the projector and the text model, with transformers' defaults."""

from __future__ import annotations

from typing import Any

from vlkv.errors import CheckpointError
from vlkv_export.checkpoint.facts import Activation, Projector, TextConfig, VisionConfig
from vlkv_export.checkpoint.fields import Fields, show
from vlkv_export.checkpoint.rope import read_rope

ARCHITECTURE = "LlavaForConditionalGeneration"
SUPPORTED = f"{ARCHITECTURE} with a clip_vision_model tower and a llama or mistral text model"
ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
"""Configured names to the functions that they are; the four that compute GELU by tanh are one function."""

MAX_LAYERS = 1024
MAX_HEADS = 4096
MAX_HEAD_DIM = 4096
VISION_WHERE_ABSENT: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
"""What `LlavaConfig` makes its tower when there is no `vision_config` at all."""


def check_architecture(config: Fields) -> None:
    """Raise `CheckpointError` for another architecture, and for quantised weights."""
    names = config.get("architectures")
    kind = config.get("model_type")
    if names is None and kind == "llava":
        names = [ARCHITECTURE]
    if not isinstance(names, list) or ARCHITECTURE not in names:
        named = f"architectures {show(names)} of model_type {show(kind)}"
        raise CheckpointError(f"{config.where}: {named} is not supported; supported: {SUPPORTED}")
    for part in (config, config.child("text_config"), config.child("vision_config")):
        if "quantization_config" in part:
            method = part.get("quantization_config")
            method = method.get("quant_method") if isinstance(method, dict) else method
            raise CheckpointError(
                f"{part.where}: quantization_config ({show(method)}): quantised checkpoints are not "
                "supported; give the float32, float16 or bfloat16 checkpoint that it was made from"
            )


def read_vision(config: Fields) -> VisionConfig:
    """Read the tower: `vision_config`, `vision_feature_layer`, `vision_feature_select_strategy`."""
    vision = config.child("vision_config", VISION_WHERE_ABSENT)
    kind = vision.string("model_type", "clip_vision_model")
    if kind != "clip_vision_model":
        raise CheckpointError(
            f"{vision.where}: vision tower {kind!r} is not supported; supported: clip_vision_model"
        )
    layers = vision.integer("num_hidden_layers", 12, high=MAX_LAYERS)
    hidden = vision.integer("hidden_size", 768)
    heads = vision.integer("num_attention_heads", 12, high=MAX_HEADS)
    if hidden % heads:
        raise CheckpointError(
            f"{vision.where}: hidden_size {hidden} is not a multiple of {heads} attention heads"
        )
    image_size = vision.integer("image_size", 224, high=1 << 14)
    patch_size = vision.integer("patch_size", 32)
    if patch_size > image_size:
        raise CheckpointError(
            f"{vision.where}: patch_size {patch_size} is larger than image_size {image_size}"
        )
    select = config.string("vision_feature_select_strategy", "default")
    if select not in ("default", "full"):
        raise config.fail("vision_feature_select_strategy", '"default" or "full"')
    return VisionConfig(
        hidden=hidden,
        layers=layers,
        heads=heads,
        intermediate=vision.integer("intermediate_size", 3072),
        image_size=image_size,
        patch_size=patch_size,
        channels=vision.integer("num_channels", 3, low=3, high=3),
        activation=_activation(vision, "hidden_act", "quick_gelu"),
        eps=vision.number("layer_norm_eps", 1e-5, high=1.0),
        feature_layers=_feature_layers(config, layers),
        select=select,
    )


def read_projector(config: Fields) -> Projector:
    """Read the two-layer projector: `projector_hidden_act`, `multimodal_projector_bias`."""
    return Projector(
        _activation(config, "projector_hidden_act", "gelu"), config.boolean("multimodal_projector_bias", True)
    )


def read_text(config: Fields) -> TextConfig:
    """Read the text model: `text_config`, with the defaults of its class."""
    text = config.child("text_config")
    kind = text.string("model_type", "llama")
    if kind not in ("llama", "mistral"):
        raise CheckpointError(
            f"{text.where}: text model {kind!r} is not supported; supported: llama, mistral"
        )
    llama = kind == "llama"
    hidden = text.integer("hidden_size", 4096)
    query_heads = text.integer("num_attention_heads", 32, high=MAX_HEADS)
    grouped = query_heads if llama or "num_key_value_heads" in text.values else 8
    kv_heads = text.integer("num_key_value_heads", grouped, high=MAX_HEADS)
    if query_heads % kv_heads:
        raise CheckpointError(
            f"{text.where}: num_attention_heads {query_heads} is not a multiple of "
            f"num_key_value_heads {kv_heads}"
        )
    if "head_dim" not in text and hidden % query_heads:
        raise CheckpointError(
            f"{text.where}: hidden_size {hidden} is not a multiple of num_attention_heads {query_heads}, "
            "and there is no head_dim"
        )
    head_dim = text.integer("head_dim", hidden // query_heads, high=MAX_HEAD_DIM)
    if head_dim % 2:
        raise CheckpointError(f"{text.where}: head_dim {head_dim} is odd; rotary embedding needs an even one")
    positions = text.integer("max_position_embeddings", 2048 if llama else 4096 * 32, high=1 << 30)
    window = None
    if not llama and text.values.get("sliding_window", 4096) is not None:
        window = text.integer("sliding_window", 4096, high=1 << 30)
    return TextConfig(
        architecture="llama" if llama else "mistral",
        hidden=hidden,
        layers=text.integer("num_hidden_layers", 32, high=MAX_LAYERS),
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=text.integer("intermediate_size", 11008 if llama else 14336),
        activation=_activation(text, "hidden_act", "silu"),
        eps=text.number("rms_norm_eps", 1e-6, high=1.0),
        vocab=text.integer("vocab_size", 32000),
        max_positions=positions if window is None else min(positions, window),
        rope=read_rope(text, head_dim, positions),
        tied=config.boolean("tie_word_embeddings", False) or text.boolean("tie_word_embeddings", False),
        attention_bias=llama and text.boolean("attention_bias", False),
        mlp_bias=llama and text.boolean("mlp_bias", False),
        sliding_window=window,
    )


def read_image_token(config: Fields, vocab: int) -> int:
    """Return the id that stands for a picture: `image_token_id` or `image_token_index`."""
    name = "image_token_id" if "image_token_id" in config else "image_token_index"
    value = config.integer(name, 32000, low=0)
    if value >= vocab:
        raise CheckpointError(f"{config.where}: {name} {value} is outside the vocabulary of {vocab}")
    return value


def _activation(fields: Fields, name: str, default: str) -> Activation:
    value = fields.string(name, default)
    if value not in ACTIVATIONS:
        raise CheckpointError(
            f"{fields.where}: {name} {show(value)} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[value]


def _feature_layers(config: Fields, layers: int) -> tuple[int, ...]:
    value = config.get("vision_feature_layer")
    value = -2 if value is None else value
    given = value if isinstance(value, list) else [value]
    whole = all(isinstance(index, int) and not isinstance(index, bool) for index in given)
    if not given or not whole or not all(-layers - 1 <= index <= layers for index in given):
        raise config.fail(
            "vision_feature_layer",
            f"one or a list of the {layers + 1} hidden states, {-layers - 1} to {layers}",
        )
    return tuple(index + layers + 1 if index < 0 else index for index in given)
