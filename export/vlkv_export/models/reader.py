"""Reads a checkpoint's folder: configuration, processor, tokenizer, and the headers of the weight files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from vlkv.errors import CheckpointError
from vlkv.storage.image_facts import ImageFacts, VideoFacts
from vlkv_export.checkpoint import generation, layout, processor, prompt, weights
from vlkv_export.checkpoint.adapter import base_folder, find_adapter, read_merges
from vlkv_export.checkpoint.facts import Checkpoint, Coded, Projector, Tensor, TextConfig, VisionConfig
from vlkv_export.checkpoint.fields import Fields, read_object, show
from vlkv_export.checkpoint.fused import split
from vlkv_export.checkpoint.quantisation import Scheme, read_scheme
from vlkv_export.checkpoint.settings import read_image_token
from vlkv_export.checkpoint.tokenizer import NAME, AddedTokens
from vlkv_export.models import registry
from vlkv_export.models.spec import Described, Family, ImageSource, Shapes

VISION = "vision."


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


def read_parts(config: Fields, tower: Path | None = None) -> Parts:
    """Read the parts of a model with the readers of the registry. Raises `CheckpointError`."""
    name = registry.find_family(config)
    return _parts(name, _described(registry.FAMILIES[name], config, tower))


def _described(family: Family, config: Fields, tower: Path | None) -> Described:
    if family.foreign is not None:
        if tower is not None:
            _config_path(tower)
        return family.foreign.describe(config, tower)
    if tower is not None:
        raise CheckpointError(f"--tower {show(str(tower))}: this checkpoint holds its vision tower itself")
    vision = config.child("vision_config", family.vision_where_absent)
    return Described(config, vision, config.child("text_config"))


def _parts(name: str, given: Described) -> Parts:
    family = registry.FAMILIES[name]
    config, vision, text = given.config, given.vision, given.text
    tower = registry.TOWERS[registry.find_tower(vision, family.tower)]
    vision_config, projector = tower.read(config, vision, family.selection), family.read(config)
    text_model = registry.TEXT_MODELS[registry.find_text_model(text, family.text)]
    return Parts(name, vision_config, projector, text_model.read(config, text))


def read_checkpoint(folder: str | Path, tower: str | Path | None = None) -> Checkpoint:
    """Read a LLaVA folder: `config.json`, safetensors headers, processor and tokenizer files.

    Both generations of every file are understood. `tower` is the folder of the vision tower, for checkpoints of the
    original LLaVA, which do not hold it. Raises `CheckpointError`, one line that names what was found and what would
    work, for anything missing, damaged or unsupported.
    """
    try:
        return _read(Path(folder), None if tower is None else Path(tower))
    except OSError as error:
        raise CheckpointError(f"{folder} can't be read: {error.strerror or error}") from None


def _read(folder: Path, tower: Path | None) -> Checkpoint:
    adapter = find_adapter(folder)
    if adapter is not None:
        folder = base_folder(adapter)
    read = _read_pictures(folder, tower)
    config, parts, added = read.config, read.parts, read.added
    family = registry.FAMILIES[parts.family]
    vision, text, image = parts.vision, parts.text, read.image
    scheme = read_scheme(config, config.child("text_config"), read.given.vision)
    text_model = registry.TEXT_MODELS[text.architecture]
    video, untaken = _read_video(folder, config, parts, added)
    if video is not None and video.graph == "vision":
        image = msgspec.structs.replace(image, tile_features=video.frame.tile_features)
    tokens = prompt.read_tokens(folder, config, text.vocab, text_model.special)
    template = prompt.read_chat_template(folder)
    notes = []
    if template is None and family.foreign is not None:
        template, called = family.foreign.template(config, added)
        notes.append(f"{folder} has no chat template: prompts follow the original code's {called}")
    tensors, coded, elsewhere = _tensors(folder, tower, parts, config, video is not None, scheme)
    if scheme is not None and not coded:
        raise CheckpointError(
            f"{config.where}: quantization_config names {scheme.method}, and no matrix of the weights is stored so; "
            "take quantization_config out if they are floats"
        )
    merges = {} if adapter is None else read_merges(adapter, family.prefixes, tensors)
    if merges.keys() & {layout.HEAD, layout.EMBEDDING} and text.tied:
        raise CheckpointError(
            f"{folder}: an adapter of a head that is the token embeddings too is not supported"
        )
    text = replace(text, tied=tensors.get(layout.HEAD) == tensors[layout.EMBEDDING])
    settings, left_out = generation.read_generation(folder, text.vocab)
    notes += [
        *left_out,
        *untaken,
        *(scheme.notes if scheme is not None else ()),
        *_notes((config, *read.processors, added.config), added, text.vocab),
    ]
    if added.vocabulary > text.vocab:
        raise CheckpointError(
            f"{added.path} has ids up to {added.vocabulary - 1}, the embedding table has {text.vocab} rows: "
            "the tokenizer is another model's"
        )
    return Checkpoint(
        folder,
        parts.family,
        vision,
        parts.projector,
        text,
        image,
        tokens,
        tensors,
        template,
        added.files(folder),
        settings,
        tuple(notes),
        video,
        coded,
        merges,
        elsewhere=elsewhere,
        written={} if added.written is None else {NAME: added.written},
    )


def read_image_facts(folder: Path) -> ImageFacts:
    """Reads how pictures become tokens from a folder without weights: `config.json`, processor and tokenizer.

    Raises `CheckpointError` as `read_checkpoint` does.
    """
    return _read_pictures(folder, None).image


@dataclass(frozen=True)
class _Pictures:
    """What a folder says without its weights: configuration, parts, both processor files, tokens, and pictures."""

    config: Fields
    given: Described
    parts: Parts
    added: AddedTokens
    processors: tuple[Fields, Fields]
    image: ImageFacts


def _read_pictures(folder: Path, tower: Path | None) -> _Pictures:
    config = Fields(read_object(_config_path(folder)), str(folder / "config.json"))
    name = registry.find_family(config)
    family = registry.FAMILIES[name]
    given = _described(family, config, tower)
    parts = _parts(name, given)
    added = AddedTokens(folder)
    token = _image_token(config, parts.text, family, added)
    single, combined = _processor(folder, tower, parts.vision, family)
    read_image = registry.TOWERS[parts.vision.architecture].read_image or family.read_image
    image = read_image(ImageSource(given.config, single, combined, parts.vision, token, added))
    return _Pictures(config, given, parts, added, (single, combined), image)


def _image_token(
    config: Fields, text: TextConfig, family: Family, added: AddedTokens
) -> processor.ImageToken:
    if family.foreign is not None:
        return processor.ImageToken(0, family.foreign.token)
    token_id = read_image_token(config, text.vocab, family.image_token_id)
    return processor.ImageToken(token_id, added.image_token(token_id))


def _processor(
    folder: Path, tower: Path | None, vision: VisionConfig, family: Family
) -> tuple[Fields, Fields]:
    """The image processor's fields; a foreign family's lie with its tower, CLIP's own where that was not given."""
    if family.foreign is None or tower is not None:
        return processor.read_processor(tower or folder)
    sizes = {"size": vision.image_size, "crop_size": vision.image_size}
    return Fields(sizes, str(folder)), Fields({}, str(folder))


def _tensors(
    folder: Path, tower: Path | None, parts: Parts, config: Fields, videos: bool, scheme: Scheme | None
) -> tuple[dict[str, Tensor], dict[str, Coded], dict[str, Path]]:
    """All tensors and coded matrices by canonical name, and the files that lie with a tower of its own."""
    family, text = registry.FAMILIES[parts.family], parts.text
    text_model = registry.TEXT_MODELS[text.architecture]
    found = split(folder, weights.find(folder, family.prefixes), text_model.fused(text))
    for name in text_model.unexpected(text):
        if name in found:
            raise CheckpointError(
                f"{folder}: the weights hold {found[name][0]}, but config.json says that there is none; "
                "set attention_bias or mlp_bias of text_config"
            )
    wanted = list(parts.tensors(videos))
    if family.foreign is None or any(name.startswith(VISION) for name in found):
        return *weights.select(folder, found, wanted, text.tied, scheme), {}
    if tower is None:
        raise family.foreign.missing(config)
    own = [(name, shape) for name, shape in wanted if not name.startswith(VISION)]
    apart = [(name, shape) for name, shape in wanted if name.startswith(VISION)]
    tensors, coded = weights.select(folder, found, own, text.tied, scheme)
    theirs, _ = weights.select(tower, weights.find(tower, family.foreign.prefixes), apart, False, None)
    files = {tensor.file: f"tower.{tensor.file}" for tensor in theirs.values()}
    renamed = {name: replace(tensor, file=files[tensor.file]) for name, tensor in theirs.items()}
    return renamed | tensors, coded, {new: tower / old for old, new in files.items()}


def _notes(files: Iterable[Fields], added: AddedTokens, vocab: int) -> list[str]:
    notes = []
    beyond = [text for index, text in added.texts.items() if index >= vocab]
    if added.largest >= vocab:
        such = f", {len(beyond)} of them added tokens such as {show(beyond[0])}" if beyond else ""
        notes.append(
            f"{added.path}: ids up to {added.largest}{such}, are beyond the {vocab} rows of the embedding table; "
            "prompts that hold one are refused"
        )
    for fields in files:
        if "auto_map" in fields:
            code = show(fields.get("auto_map"))
            notes.append(f"{fields.where}: auto_map {code} names code, which is never run")
    return notes


def _read_video(
    folder: Path, config: Fields, parts: Parts, added: AddedTokens
) -> tuple[VideoFacts | None, tuple[str, ...]]:
    """How videos become tokens; None, and why, where the checkpoint lacks what they need: pictures do without it."""
    family = registry.FAMILIES[parts.family]
    if family.read_video is None:
        return None, ()
    try:
        token_id = read_image_token(config, parts.text.vocab, family.video_token_id, "video")
        token = processor.ImageToken(token_id, added.image_token(token_id, "video"))
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
