"""ViP-LLaVA: features of five layers of the tower, concatenated and normalised before the projector."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vlkv_export.checkpoint.facts import Projector, TextConfig, VisionConfig
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.checkpoint.layout import Shape, norm
from vlkv_export.checkpoint.settings import read_activation
from vlkv_export.models.families import llava
from vlkv_export.models.spec import Selection


def read(config: Fields) -> Projector:
    """Read the projector: `projector_hidden_act`, `projector_layernorm_eps`; its linear layers have biases."""
    activation = read_activation(config, "projector_hidden_act", "gelu")
    return Projector(activation, True, config.number("projector_layernorm_eps", 1e-5, high=1.0))


def tensors(vision: VisionConfig, projector: Projector, text: TextConfig) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the projector."""
    yield from norm("projector.projector_layernorm", vision.hidden * len(vision.feature_layers))
    yield from llava.tensors(vision, projector, text)


FAMILY = replace(
    llava.FAMILY,
    model_type="vipllava",
    read=read,
    tensors=tensors,
    selection=Selection([-2, -5, -8, -11, 6], "default", fixed_strategy=True),
)
