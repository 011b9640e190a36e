"""The registry's records of a vision tower, a text model and a family."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from vlkv.errors import CheckpointError
from vlkv.storage.image_facts import ImageFacts, VideoFacts
from vlkv_export.checkpoint.facts import Checkpoint, Projector, TextConfig, VisionConfig
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.checkpoint.fused import Rows
from vlkv_export.checkpoint.layout import Shape
from vlkv_export.checkpoint.processor import ImageToken
from vlkv_export.checkpoint.tokenizer import AddedTokens
from vlkv_export.graph.builder import Builder

Shapes = Iterator[tuple[str, Shape]]
Prefixes = tuple[tuple[re.Pattern[str], str], ...]


@dataclass(frozen=True)
class Selection:
    """The features that a family takes from its tower by default."""

    layer: int | list[int] = -2
    strategy: str = "default"
    fixed_strategy: bool = False
    """Whether the family uses this strategy even if the configuration names another."""


@dataclass(frozen=True)
class ImageSource:
    """The parts of a checkpoint that determine how pictures become tokens.

    `config` is `config.json`, `processor` holds the image processor's fields, `combined` those of
    `processor_config.json`; `token` is the image token, `added` are the tokenizer's added tokens.
    """

    config: Fields
    processor: Fields
    combined: Fields
    vision: VisionConfig
    token: ImageToken
    added: AddedTokens


ReadImage = Callable[[ImageSource], ImageFacts]
ReadVideo = Callable[[ImageSource], VideoFacts]
"""Its source's processor and token are those of videos."""


@dataclass(frozen=True)
class Tower:
    """A vision tower.

    `read(config, vision, selection)` receives the whole configuration and `vision_config`. `tensors` returns canonical
    names and shapes. `build` maps pictures `[N,3,H,W]` to the selected features `[N,P,hidden * feature layers]`.
    `read_image`, if given, replaces the family's: the tower then decides which tokens a picture has.
    """

    read: Callable[[Fields, Fields, Selection], VisionConfig]
    tensors: Callable[[VisionConfig], Shapes]
    build: Callable[[Builder, ir.Value, VisionConfig], ir.Value]
    read_image: ReadImage | None = None


@dataclass(frozen=True)
class TextModel:
    """A text model.

    `read(config, text)` receives the whole configuration and `text_config`. `unexpected` names the tensors that must
    not exist according to the configuration. `build` makes the whole `decoder` graph.
    """

    read: Callable[[Fields, Fields], TextConfig]
    tensors: Callable[[TextConfig], Shapes]
    unexpected: Callable[[TextConfig], Iterator[str]]
    build: Callable[[Checkpoint, str], ir.Model]
    special: Mapping[str, int | None] = field(default_factory=lambda: {"bos": 1, "eos": 2, "pad": None})
    """The token ids that the class assumes if no file names them."""
    fused: Callable[[TextConfig], Iterator[tuple[str, Rows]]] = lambda text: iter(())
    """The matrices that its checkpoints store as one."""


@dataclass(frozen=True)
class Described:
    """Configurations in transformers' terms: of the whole model, of its tower and of its text model."""

    config: Fields
    vision: Fields
    text: Fields


@dataclass(frozen=True)
class Foreign:
    """How to read checkpoints that transformers has no class for.

    `describe(config, tower)` translates `config.json` into transformers' terms; `tower` is the tower's folder, or None.
    `missing(config)` makes the error for a missing tower folder. `token` is the text that stands for a picture; the
    tokenizer has no such token. `prefixes` map the names of tensors in the tower's folder to canonical names.
    `template(config, added)` returns the chat template for folders without one, and its name.
    """

    describe: Callable[[Fields, Path | None], Described]
    missing: Callable[[Fields], CheckpointError]
    token: str
    prefixes: Prefixes
    template: Callable[[Fields, AddedTokens], tuple[str, str]]


@dataclass(frozen=True)
class Family:
    """How a tower, a projector and a text model form one model.

    `model_type` identifies the family if the configuration has no `architectures`; `aliases` are other names that
    checkpoints have there. `prefixes` map the names of stored tensors to canonical names. `read_image` determines how
    pictures become tokens. `build` makes the whole `vision` graph around a given tower. `read_video` determines how
    videos become tokens; `video_token_id` is the token that stands for one if the configuration has none. If frames
    have their own tower, `video_tower` makes its record from that of pictures, and `build_video` makes the `video`
    graph.
    """

    model_type: str
    tower: str
    text: str
    vision_where_absent: dict[str, object]
    prefixes: Prefixes
    read: Callable[[Fields], Projector]
    read_image: ReadImage
    tensors: Callable[[VisionConfig, Projector, TextConfig], Shapes]
    build: Callable[[Checkpoint, str, Tower], ir.Model]
    selection: Selection = Selection()
    image_token_id: int = 32000
    read_video: ReadVideo | None = None
    video_token_id: int = 32001
    video_tower: Callable[[VisionConfig], VisionConfig] | None = None
    build_video: Callable[[Checkpoint, str, Tower], ir.Model] | None = None
    aliases: tuple[str, ...] = ()
    foreign: Foreign | None = None
