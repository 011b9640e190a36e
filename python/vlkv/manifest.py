"""`manifest.json`: what a graph or engine directory holds. Read with a schema; nothing in it is executed.

Dimension legend, here and everywhere: B prompts, S tokens of a call, W observed rows, C cache slots,
Hq query heads, Hkv key/value heads, D head dimension, L layers, N pictures, P image tokens a picture,
V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from vlkv.errors import EngineError

FORMAT_VERSION = 1
NAME = "manifest.json"
MAX_BYTES = 16 << 20


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record whose unknown fields are errors."""


class TextFacts(Struct):
    """The text model's sizes."""

    architecture: str
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    max_positions: int
    sliding_window: int | None = None


class ImageFacts(Struct):
    """How a picture becomes tokens. Sizes in pixels; means and deviations per channel after rescaling."""

    token_id: int
    token: str
    tokens_per_image: int
    height: int
    width: int
    resize: Literal["none", "shortest_edge", "exact"]
    resize_height: int
    resize_width: int
    crop: bool
    pad_to_square: bool
    resample: int
    rescale: float
    normalize: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class TokenFacts(Struct):
    """The ids that start and end a text, from the checkpoint's configuration."""

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


class Embedding(Struct):
    """Where the token embedding table `[V, hidden]` lies: a file of the directory, an offset, a dtype."""

    file: str
    offset: int
    dtype: Literal["float32", "float16", "bfloat16"]
    shape: tuple[int, int]


class FileFacts(Struct):
    """A file of the directory: bytes, and SHA-256 in hexadecimal (none for a graph directory's weights)."""

    size: int
    sha256: str | None = None


class Manifest(Struct):
    """Everything that a runtime has to know of a directory before it opens a graph."""

    format_version: int
    kind: Literal["graphs", "engine"]
    backend: Literal["none", "onnxruntime", "tensorrt", "tensorrt-rtx"]
    operators: Literal["functions", "native"]
    cache_dtype: Literal["float32", "float16", "bfloat16"]
    text: TextFacts
    image: ImageFacts
    tokens: TokenFacts
    embedding: Embedding
    chat_template: str | None
    versions: dict[str, str]
    files: dict[str, FileFacts]


def encode(manifest: Manifest) -> bytes:
    """The manifest as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
