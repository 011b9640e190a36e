"""The supported families, vision towers and text models, by the names that transformers uses."""

from __future__ import annotations

import onnx_ir as ir

from vlkv.errors import CheckpointError
from vlkv_export.checkpoint.facts import Checkpoint
from vlkv_export.checkpoint.fields import Fields, show
from vlkv_export.models.families import (
    llava,
    llava_next,
    llava_next_video,
    llava_onevision,
    original,
    video_llava,
    vipllava,
)
from vlkv_export.models.spec import Family, TextModel, Tower
from vlkv_export.models.text import gemma, llama, mistral, phi3, qwen2, qwen3
from vlkv_export.models.towers import clip, pixtral, siglip

TOWERS: dict[str, Tower] = {
    "clip_vision_model": clip.TOWER,
    "siglip_vision_model": siglip.TOWER,
    "pixtral": pixtral.TOWER,
}
TEXT_MODELS: dict[str, TextModel] = {
    "llama": llama.MODEL,
    "mistral": mistral.MODEL,
    "qwen2": qwen2.MODEL,
    "qwen3": qwen3.MODEL,
    "gemma": gemma.MODEL,
    "phi3": phi3.MODEL,
}
FAMILIES: dict[str, Family] = {
    "LlavaForConditionalGeneration": llava.FAMILY,
    "LlavaNextForConditionalGeneration": llava_next.FAMILY,
    "LlavaNextVideoForConditionalGeneration": llava_next_video.FAMILY,
    "LlavaOnevisionForConditionalGeneration": llava_onevision.FAMILY,
    "VipLlavaForConditionalGeneration": vipllava.FAMILY,
    "VideoLlavaForConditionalGeneration": video_llava.FAMILY,
    "LlavaLlamaForCausalLM": original.LLAMA,
    "LlavaMistralForCausalLM": original.MISTRAL,
}

REASONS = {"gemma2": "it caps attention scores, which the attention operators here do not"}
"""Why a text model that is often asked for is not here."""


def supported() -> str:
    """The supported models in words, for error messages."""
    towers, texts = " or ".join(TOWERS), " or ".join(TEXT_MODELS)
    return f"{' or '.join(FAMILIES)} with a {towers} tower and a {texts} text model"


def find_family(config: Fields) -> str:
    """Return the name of a configuration's family. Raises `CheckpointError` for an unsupported one."""
    names, kind = config.get("architectures"), config.get("model_type")
    if names is None:
        names = [name for name, family in FAMILIES.items() if family.model_type == kind] or None
    found = [name for name in FAMILIES if name in names] if isinstance(names, list) else []
    if not found:
        named = f"architectures {show(names)} of model_type {show(kind)}"
        raise CheckpointError(f"{config.where}: {named} is not supported; supported: {supported()}")
    family = FAMILIES[found[0]]
    if kind is not None and kind not in (family.model_type, *family.aliases):
        raise CheckpointError(
            f"{config.where}: architectures {show(names)} and model_type {show(kind)} disagree; "
            f"{found[0]} has model_type {family.model_type!r}"
        )
    return found[0]


def find_tower(vision: Fields, default: str) -> str:
    """Return the name of the tower that `vision_config` asks for. Raises `CheckpointError`."""
    return _known(vision, "vision tower", default, list(TOWERS))


def find_text_model(text: Fields, default: str) -> str:
    """Return the name of the text model that `text_config` asks for. Raises `CheckpointError`."""
    return _known(text, "text model", default, list(TEXT_MODELS))


def build_vision(checkpoint: Checkpoint, dtype: str) -> ir.Model:
    """Build the `vision` graph of a checkpoint from its family and its tower."""
    return FAMILIES[checkpoint.family].build(checkpoint, dtype, TOWERS[checkpoint.vision.architecture])


def build_video(checkpoint: Checkpoint, dtype: str) -> ir.Model | None:
    """Build the `video` graph, where a checkpoint's frames have one of their own."""
    build = FAMILIES[checkpoint.family].build_video
    if build is None or checkpoint.video is None:
        return None
    return build(checkpoint, dtype, TOWERS[checkpoint.vision.architecture])


def build_decoder(checkpoint: Checkpoint, dtype: str) -> ir.Model:
    """Build the `decoder` graph of a checkpoint's text model."""
    return TEXT_MODELS[checkpoint.text.architecture].build(checkpoint, dtype)


def _known(fields: Fields, what: str, default: str, names: list[str]) -> str:
    kind = fields.string("model_type", default)
    if kind not in names:
        because = f" ({REASONS[kind]})" if kind in REASONS else ""
        raise CheckpointError(
            f"{fields.where}: {what} {kind!r} is not supported{because}; supported: {', '.join(names)}"
        )
    return kind
