"""The records that describe a checkpoint. Dimension letters are those of `vlkv.storage.manifest`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from vlkv.storage.image_facts import ImageFacts, VideoFacts
from vlkv.storage.manifest import GenerationFacts, TokenFacts
from vlkv_export.checkpoint.quantisation import Scheme

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
class Merge:
    """What an adapter adds to a matrix `[N, K]`: scale * B A, `a` `[r, K]` and `b` `[N, r]` in files of `folder`."""

    folder: Path
    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True)
class Stored:
    """Part of a matrix in codes: as `Tensor`, of any dtype that the format names."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True)
class Coded:
    """A matrix `[outputs, inputs]` that the checkpoint holds in codes: its parts by name, and how they are laid out."""

    name: str
    shape: tuple[int, int]
    scheme: Scheme
    parts: dict[str, Stored]


@dataclass(frozen=True)
class Placed:
    """A coded matrix as a graph directory holds it: (code - zero) * scale, N outputs, K inputs, G blocks a row.

    Fields:
        shape: `(N, K)`.
        bits: of a code, 4 or 8.
        codes: `[N, K]`, uint8, or two codes a byte, the earlier in the low bits.
        scales: `[N, G]`, float16 or float32.
        zeros: `[N, G]` uint8; None where all are 128.
        order: `[K]` int64, which input each column multiplies; None for their own order.
    """

    shape: tuple[int, int]
    bits: Literal[4, 8]
    codes: Stored
    scales: Stored
    zeros: Stored | None = None
    order: np.ndarray | None = None


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
    """Linear layers with an activation between them; a layer norm before them if `norm_eps` is given.

    `newline` says that the checkpoint has a vector that ends rows of features.
    """

    activation: Activation
    bias: bool
    norm_eps: float | None = None
    pool: Pool | None = None
    layers: int = 2
    newline: bool = False


@dataclass(frozen=True, eq=False)
class Rope:
    """Rotary embedding: angles are position * `inv_freq` (float32 `[D/2]`); cos and sin times `attention_factor`.

    `positions` is the number of positions that the frequencies hold for, if it is below the model's.
    """

    inv_freq: np.ndarray
    attention_factor: float
    positions: int | None = None


@dataclass(frozen=True)
class TextConfig:
    """A Llama-like decoder; `architecture` is its name in the registry.

    `norm_offset` is added to the weights of norms, `embed_scale` multiplies token embeddings, and `head_norms` says
    whether each head's queries and keys are normalised. `windows` `[layers]` is the number of tokens that each
    layer sees, including the token itself, 0 for all; it is empty if every layer sees all tokens. `biases` names the
    projections with a bias, of q, k, v, o, gate, up and down.
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
    windows: tuple[int, ...] = ()
    norm_offset: float = 0.0
    embed_scale: float = 1.0
    head_norms: bool = False

    def window(self, layer: int) -> int:
        """Tokens that a layer sees, 0 for all."""
        return self.windows[layer] if self.windows else 0


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
    coded: Mapping[str, Coded] = field(default_factory=dict)
    """Matrices that are stored in codes, by canonical name; `tensors` does not have them."""
    merges: Mapping[str, Merge] = field(default_factory=dict)
    """What an adapter adds, by the canonical name of the matrix."""
    placed: Mapping[str, Placed] = field(default_factory=dict)
    """The same once they lie in a graph directory."""
    elsewhere: Mapping[str, Path] = field(default_factory=dict)
    """Weight files outside `folder`, by the name that `tensors` use."""
    written: Mapping[str, bytes] = field(default_factory=dict)
    """Files that replace those of the folder, by name."""

    def weight_files(self) -> dict[str, Path]:
        """Return the path of each weight file, by its name in `tensors`."""
        names = sorted({tensor.file for tensor in self.tensors.values()})
        return {name: self.elsewhere.get(name, self.folder / name) for name in names}
