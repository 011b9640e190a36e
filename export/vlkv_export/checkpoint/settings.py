"""Settings that towers, projectors and text models share: activations, feature layers, and size limits."""

from __future__ import annotations

from vlkv.errors import CheckpointError
from vlkv_export.checkpoint.facts import Activation
from vlkv_export.checkpoint.fields import Fields, show

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
"""Activations by their names in configurations; four of the names mean the tanh approximation of GELU."""

MAX_HEADS = 4096
MAX_HEAD_DIM = 4096


def read_activation(fields: Fields, name: str, default: str) -> Activation:
    """Return the activation that a field names. Raises `CheckpointError` for an unknown one."""
    value = fields.string(name, default)
    if value not in ACTIVATIONS:
        raise CheckpointError(
            f"{fields.where}: {name} {show(value)} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[value]


def read_feature_layers(config: Fields, layers: int, default: int | list[int]) -> tuple[int, ...]:
    """Return the hidden states that `vision_feature_layer` selects, counted from 0. Raises `CheckpointError`."""
    names = ("vision_feature_layer", "vision_feature_layers")
    value = next((config.get(name) for name in names if name in config), None)
    value = default if value is None else value
    given = value if isinstance(value, list) else [value]
    whole = all(isinstance(index, int) and not isinstance(index, bool) for index in given)
    if not given or not whole or not all(-layers - 1 <= index <= layers for index in given):
        raise config.fail(
            "vision_feature_layer",
            f"one or a list of the {layers + 1} hidden states, {-layers - 1} to {layers}",
        )
    return tuple(index + layers + 1 if index < 0 else index for index in given)


def read_image_token(config: Fields, vocab: int, default: int = 32000, medium: str = "image") -> int:
    """Return the id that stands for a picture: `image_token_id` or `image_token_index`; or that of another medium."""
    name = f"{medium}_token_id" if f"{medium}_token_id" in config else f"{medium}_token_index"
    value = config.integer(name, default, low=0)
    if value >= vocab:
        raise CheckpointError(f"{config.where}: {name} {value} is outside the vocabulary of {vocab}")
    return value
