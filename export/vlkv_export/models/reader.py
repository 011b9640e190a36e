"""Reads a checkpoint's folder: configuration, processor, tokenizer, and the headers of the weight files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from vlkv.errors import CheckpointError
from vlkv.storage.image_facts import VideoFacts
from vlkv_export.checkpoint import generation, layout, processor, prompt, weights
from vlkv_export.checkpoint.facts import Checkpoint, Projector, TextConfig, VisionConfig
from vlkv_export.checkpoint.fields import Fields, read_object, show
from vlkv_export.checkpoint.settings import read_image_token
from vlkv_export.models import registry
from vlkv_export.models.spec import ImageSource, Shapes


@dataclass(frozen=True)
class Parts:
    """The contents of `config.json`: the family's name and the records of the model's parts."""

    family: str
    vision: VisionConfig
    projector: Projector
    text: TextConfig

    def tensors(self, videos: bool = False) -> Shapes:
        """Canonical name and shape of every tensor that the graphs use, in the order of use.

        Linear weights are `[outputs, inputs]`. Of a tower, only the layers that the features need; the tower of frames
        with `videos`.
        """
        family, tower = registry.FAMILIES[self.family], registry.TOWERS[self.vision.architecture]
        yield from tower.tensors(self.vision)
        if videos and family.video_tower is not None:
            yield from tower.tensors(family.video_tower(self.vision))
        yield from family.tensors(self.vision, self.projector, self.text)
        yield from registry.TEXT_MODELS[self.text.architecture].tensors(self.text)


def read_parts(config: Fields) -> Parts:
    """Read the parts of a model with the readers of the registry. Raises `CheckpointError`."""
    name = registry.find_family(config)
    family = registry.FAMILIES[name]
    _refuse_quantised(config)
    vision = config.child("vision_config", family.vision_where_absent)
    tower = registry.TOWERS[registry.find_tower(vision, family.tower)]
    vision_config, projector = tower.read(config, vision, family.selection), family.read(config)
    text = config.child("text_config")
    text_model = registry.TEXT_MODELS[registry.find_text_model(text, family.text)]
    return Parts(name, vision_config, projector, text_model.read(config, text))


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a Hugging Face LLaVA folder: `config.json`, safetensors headers, processor and tokenizer files.

    Both generations of every file are understood. Raises `CheckpointError`, one line that names what was
    found and what would work, for anything missing, damaged or unsupported.
    """
    try:
        return _read(Path(folder))
    except OSError as error:
        raise CheckpointError(f"{folder} can't be read: {error.strerror or error}") from None


def _read(folder: Path) -> Checkpoint:
    _refuse_adapter(folder)
    config = Fields(read_object(_config_path(folder)), str(folder / "config.json"))
    parts = read_parts(config)
    vision, projector, text = parts.vision, parts.projector, parts.text
    family, text_model = registry.FAMILIES[parts.family], registry.TEXT_MODELS[text.architecture]
    token_id = read_image_token(config, text.vocab, family.image_token_id)
    files = prompt.tokenizer_files(folder)
    added = prompt.AddedTokens(folder)
    token = processor.ImageToken(token_id, prompt.image_token(added, token_id))
    single, combined = processor.read_processor(folder)
    read_image = registry.TOWERS[vision.architecture].read_image or family.read_image
    image = read_image(ImageSource(config, single, combined, vision, token, added))
    video, untaken = _read_video(folder, config, parts, added)
    if video is not None and video.graph == "vision":
        image = msgspec.structs.replace(image, tile_features=video.frame.tile_features)
    tokens = prompt.read_tokens(folder, config, text.vocab, text_model.special)
    template = prompt.read_chat_template(folder)
    found = weights.find(folder, family.prefixes)
    for name in text_model.unexpected(text):
        if name in found:
            raise CheckpointError(
                f"{folder}: the weights hold {found[name][0]}, but config.json says that there is none; "
                "set attention_bias or mlp_bias of text_config"
            )
    tensors = weights.select(folder, found, parts.tensors(video is not None), text.tied)
    text = replace(text, tied=tensors[layout.HEAD] == tensors[layout.EMBEDDING])
    settings, notes = generation.read_generation(folder, text.vocab)
    notes = (*notes, *untaken)
    beyond = [index for index in added.texts if index >= text.vocab]
    if beyond:
        said = f"{len(beyond)} added tokens such as {show(added.texts[beyond[0]])} have ids beyond the {text.vocab}"
        notes = (
            *notes,
            f"{added.path}: {said} rows of the embedding table; prompts that hold one are refused",
        )
    if "auto_map" in config:
        code = f"{config.where}: auto_map {show(config.get('auto_map'))} names code, which is never run"
        notes = (*notes, code)
    return Checkpoint(
        folder,
        parts.family,
        vision,
        projector,
        text,
        image,
        tokens,
        tensors,
        template,
        files,
        settings,
        notes,
        video,
    )


def _read_video(
    folder: Path, config: Fields, parts: Parts, added: prompt.AddedTokens
) -> tuple[VideoFacts | None, tuple[str, ...]]:
    """How videos become tokens; None, and why, where the checkpoint lacks what they need: pictures do without it."""
    family = registry.FAMILIES[parts.family]
    if family.read_video is None:
        return None, ()
    try:
        token_id = read_image_token(config, parts.text.vocab, family.video_token_id, "video")
        token = processor.ImageToken(token_id, prompt.image_token(added, token_id, "video"))
        single, combined = processor.read_processor(folder)
        fields = processor.read_video_processor(folder, combined, single)
        return family.read_video(ImageSource(config, fields, combined, parts.vision, token, added)), ()
    except CheckpointError as error:
        return None, (f"videos are not taken: {error}",)


def _config_path(folder: Path) -> Path:
    advice = "give the folder of a Hugging Face checkpoint"
    path = folder / "config.json"
    try:
        there, directory, config = folder.exists(), folder.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{show(str(folder))} can't be read: {error}; {advice}") from None
    if not there:
        raise CheckpointError(f"{folder} does not exist; {advice}")
    if not directory:
        raise CheckpointError(f"{folder} is not a folder; {advice}")
    if not config:
        raise CheckpointError(f"{folder} has no config.json; {advice}")
    return path


def _refuse_adapter(folder: Path) -> None:
    """Raise `CheckpointError` for a LoRA adapter, alone or beside weights: it would change every answer."""
    path = folder / "adapter_config.json"
    if path.is_file():
        base = Fields(read_object(path), str(path)).get("base_model_name_or_path")
        raise CheckpointError(
            f"{path}: a LoRA adapter of {show(base)}; merge it with peft (merge_and_unload, then save_pretrained) "
            "and give the merged folder, or take the adapter's files out of this one"
        )


def _refuse_quantised(config: Fields) -> None:
    for part in (config, config.child("text_config"), config.child("vision_config")):
        if "quantization_config" in part:
            method = part.get("quantization_config")
            method = method.get("quant_method") if isinstance(method, dict) else method
            raise CheckpointError(
                f"{part.where}: quantization_config ({show(method)}): quantised checkpoints are not "
                "supported; give the float32, float16 or bfloat16 checkpoint that it was made from"
            )
