"""The records that describe a checkpoint. Dimension letters are those of `vlkv.storage.manifest`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from vlkv.storage.image_facts import ImageFacts, VideoFacts
from vlkv.storage.manifest import GenerationFacts, TokenFacts

Dtype = Literal["float32", "float16", "bfloat16"]
Activation = Literal["quick_gelu", "gelu", "gelu_new", "silu", "relu"]


@dataclass(frozen=True)
class Tensor:
    """The location of a tensor: `length` bytes from byte `offset` of `file`, row-major and little-endian.

    `name` is its name in the file; `file` is a plain file name inside the checkpoint's folder.
    """

    name: str
    file: str
    dtype: Dtype
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True)
class VisionConfig:
    """A vision tower; `architecture` is its name in the registry. `image_size` 0 accepts pictures of any size.

    `feature_layers` are hidden-state indexes in the order in which their features are concatenated:
    the number of encoder layers to run, 0 (the embedding after `pre_layrnorm`) to `layers`.
    `prefix` tokens come before those of the patches (a class token). `select` "default" drops the first token, which
    is the class token where there is one; "full" keeps all. `name` begins the canonical names of its tensors.
    """

    architecture: str
    hidden: int
    layers: int
    heads: int
    intermediate: int
    image_size: int
    patch_size: int
    channels: int
    activation: Activation
    eps: float
    feature_layers: tuple[int, ...]
    select: Literal["default", "full"]
    prefix: int = 1
    rope_theta: float = 0.0
    name: str = "vision"

    @property
    def patches(self) -> int:
        """Patches of one picture; a last row or column narrower than a patch is ignored."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens(self) -> int:
        """Tokens of one tile (P)."""
        return self.patches + self.prefix - (1 if self.select == "default" else 0)

    @property
    def used_layers(self) -> int:
        """The number of encoder layers that the features need; the checkpoint may lack the others."""
        return max(self.feature_layers)


@dataclass(frozen=True)
class Pool:
    """How the features of a video's frame are pooled before the projector: squares of `stride` x `stride` to one."""

    mode: Literal["average", "max", "conv"]
    stride: int


@dataclass(frozen=True)
class Projector:
    """Two linear layers with an activation between them; a layer norm before them if `norm_eps` is given."""

    activation: Activation
    bias: bool
    norm_eps: float | None = None
    pool: Pool | None = None


@dataclass(frozen=True, eq=False)
class Rope:
    """Rotary embedding: angles are position * `inv_freq` (float32 `[D/2]`); cos and sin times `attention_factor`."""

    inv_freq: np.ndarray
    attention_factor: float


@dataclass(frozen=True)
class TextConfig:
    """A Llama-like decoder; `architecture` is its name in the registry.

    `norm_offset` is added to the weights of norms, `embed_scale` multiplies token embeddings, and `head_norms` says
    whether each head's queries and keys are normalised. `max_positions` is at most `sliding_window` if there is one:
    within the window attention is the same as without it. `biases` names the projections with a bias, of q, k, v, o,
    gate, up and down.
    """

    architecture: str
    hidden: int
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    activation: Activation
    eps: float
    vocab: int
    max_positions: int
    rope: Rope
    tied: bool
    biases: frozenset[str]
    sliding_window: int | None
    norm_offset: float = 0.0
    embed_scale: float = 1.0
    head_norms: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """Everything that export needs of a checkpoint. `tensors` is keyed by canonical name; `family` names its class."""

    folder: Path
    family: str
    vision: VisionConfig
    projector: Projector
    text: TextConfig
    image: ImageFacts
    tokens: TokenFacts
    tensors: dict[str, Tensor]
    chat_template: str | None
    tokenizer_files: tuple[str, ...]
    generation: GenerationFacts
    notes: tuple[str, ...]
    """Settings of the checkpoint that the engine will not honour, one line each."""
    video: VideoFacts | None = None
