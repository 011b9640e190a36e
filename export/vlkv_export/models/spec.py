"""The registry's records of a vision tower, a text model and a family."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from vlkv.storage.image_facts import ImageFacts, VideoFacts
from vlkv_export.checkpoint.facts import Checkpoint, Projector, TextConfig, VisionConfig
from vlkv_export.checkpoint.fields import Fields
from vlkv_export.checkpoint.layout import Shape
from vlkv_export.checkpoint.processor import ImageToken
from vlkv_export.checkpoint.prompt import AddedTokens
from vlkv_export.graph.builder import Builder

Shapes = Iterator[tuple[str, Shape]]


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


@dataclass(frozen=True)
class Family:
    """How a tower, a projector and a text model form one model.

    `model_type` names the family where the configuration has no `architectures`. `prefixes` take a stored
    tensor's name to its canonical one. `read_image` says how pictures become tokens.
    `build` makes the whole `vision` graph with the tower it is given. `read_video` says how videos become tokens,
    `video_token_id` is what stands for one where the configuration does not say. Where frames have a tower of their
    own, `video_tower` makes its record of that of pictures, and `build_video` makes the `video` graph.
    """

    model_type: str
    tower: str
    text: str
    vision_where_absent: dict[str, object]
    prefixes: tuple[tuple[re.Pattern[str], str], ...]
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
