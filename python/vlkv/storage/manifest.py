"""`manifest.json`: the contents of a graph or engine directory. It is read with a schema and never executed.

Dimension letters, here and everywhere: B prompts, S tokens of a call, W observed rows, C cache slots, Hq query heads,
Hkv key/value heads, D head dimension, L layers, N pictures, P image tokens per picture, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from vlkv.errors import EngineError
from vlkv.storage.files import hash_files, reason, show, write_bytes
from vlkv.storage.image_facts import (
    Id,
    ImageFacts,
    Size,
    Struct,
    VideoFacts,
    problem,
    takes_pictures,
    video_problem,
)

FORMAT_VERSION = 2
"""The version that is written. Version 1, in which each picture had `tokens_per_image` tokens, is also read."""
READ_VERSIONS = (1, FORMAT_VERSION)
NAME = "manifest.json"
MAX_BYTES = 16 << 20

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "int64": 8, "int32": 4, "bool": 1} | {
    "int8-channel": 1,
    "float8": 1,
}
"""Bytes of one element, by dtype. Two are of caches on devices: int8 with the engine's scales, and float8 E4M3."""

MAX_LAYERS = 1024
"""More than any model has; a manifest that says more would keep the runtime busy with names."""


def cache_row(dtype: str, head_dim: int) -> int:
    """The elements of one KV cache slot of one head: D, and in int8 four more bytes, which are a float32 scale."""
    return head_dim + (4 if dtype == "int8" else 0)


def token_bytes(text: TextFacts, dtype: str) -> int:
    """The bytes of one token's keys and values in one layer's cache of that dtype."""
    return 2 * text.kv_heads * cache_row(dtype, text.head_dim) * BYTES[dtype]


Offset = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class TextFacts(Struct, frozen=True):
    """The text model's sizes.

    `layer_windows` `[L]` says how many tokens each layer sees, the token itself with them, 0 for all. It is empty where
    every layer sees all. Engines of earlier versions have `sliding_window`, and no more positions than that.
    """

    architecture: str
    layers: Size
    query_heads: Size
    kv_heads: Size
    head_dim: Size
    hidden: Size
    vocab: Size
    max_positions: Size
    sliding_window: Size | None = None
    layer_windows: tuple[Id, ...] = ()


class TokenFacts(Struct, frozen=True):
    """The ids that start and end a text, from the checkpoint's configuration."""

    bos: Id | None
    eos: tuple[Id, ...]
    pad: int | None


class GenerationFacts(Struct, frozen=True):
    """Settings of `generation_config.json` that change greedy answers, by the names and meanings of transformers."""

    repetition_penalty: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    no_repeat_ngram_size: Id = 0
    min_length: Id = 0
    min_new_tokens: Id = 0
    suppress_tokens: tuple[Id, ...] = ()
    begin_suppress_tokens: tuple[Id, ...] = ()
    bad_words: tuple[Annotated[tuple[Id, ...], msgspec.Meta(min_length=1)], ...] = ()


class Embedding(Struct, frozen=True):
    """The location of the token embedding table `[V, hidden]`: a file of the directory, an offset, a dtype.

    `scale` multiplies every row.
    """

    file: str
    offset: Offset
    dtype: Literal["float32", "float16", "bfloat16"]
    shape: tuple[Size, Size]
    scale: float = 1.0


class DeviceFacts(Struct, frozen=True):
    """The GPUs that an engine was built for, such as "8.9" (none: any), and the largest sizes of its calls.

    `capacity` is the most slots of a layer's cache; with `cache="static"` every cache has that many. Static caches, and
    `in-place` caches of any capacity, are updated in place; with `dynamic` each call writes a new cache. `batch` is the
    most prompts that decode together, `chunk` the most prompt tokens of a call.
    """

    compute_capabilities: tuple[str, ...]
    capacity: Size
    batch: Size
    chunk: Size
    cache: Literal["dynamic", "static", "in-place"]


class FileFacts(Struct, frozen=True):
    """A file of the directory: its bytes, and its SHA-256 in hexadecimal (absent for a graph directory's weights)."""

    size: Offset
    sha256: Digest | None = None


class Manifest(Struct, frozen=True):
    """Everything that a runtime needs to know of a directory before it opens a graph."""

    format_version: int
    kind: Literal["graphs", "lowered", "engine"]
    backend: Literal["none", "onnxruntime", "tensorrt", "tensorrt-rtx"]
    operators: Literal["functions", "native"]
    cache_dtype: Literal["float32", "float16", "bfloat16", "int8", "int8-channel", "float8"]
    text: TextFacts
    image: ImageFacts
    tokens: TokenFacts
    embedding: Embedding
    chat_template: str | None
    versions: dict[str, str]
    files: dict[str, FileFacts]
    device: DeviceFacts | None = None
    weights: Literal["float32", "float16", "bfloat16", "int8", "int4"] | None = None
    prompt_precision: Literal["float32", "bfloat16", "fixed16"] | None = None
    generation: GenerationFacts = GenerationFacts()
    video: VideoFacts | None = None


def default_precision(weights: str | None) -> str:
    """Returns what native operators on CPUs multiply in, unless the build says otherwise, by the weights' format."""
    return "fixed16" if weights in ("int8", "int4") else "float32"


def vision_graphs(manifest: Manifest) -> tuple[str, ...]:
    """The graphs that make features of pixels: `vision`, and `video` where frames have one of their own."""
    if not takes_pictures(manifest.image):
        return ()
    own = manifest.video is not None and manifest.video.graph == "video"
    return ("vision", "video") if own else ("vision",)


class _Header(msgspec.Struct):
    format_version: int
    kind: object = None
    versions: object = None


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode(data: bytes, name: str = NAME) -> Manifest:
    """Read a manifest from bytes. Every failure is an `EngineError` of one line that begins with `name`.

    The format version is checked first, so that the error for another version's manifest says so.
    """
    try:
        header = msgspec.json.decode(data, type=_Header)
        if header.format_version not in READ_VERSIONS:
            raise EngineError(f"{name}: {_version_advice(header)}")
        if header.format_version == 1:
            data = _from_version_1(data)
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise EngineError(f"{name}: {reason(error)}") from error
    check(manifest, name)
    return manifest


def _from_version_1(data: bytes) -> bytes:
    """Convert a manifest of version 1: its `tokens_per_image` become the features of a tile."""
    values = msgspec.json.decode(data)
    values["format_version"] = FORMAT_VERSION
    image = values.get("image")
    if isinstance(image, dict) and "tokens_per_image" in image:
        image["tile_features"] = image.pop("tokens_per_image")
    return msgspec.json.encode(values)


def _version_advice(header: _Header) -> str:
    writer = header.versions.get("vlkv") if isinstance(header.versions, dict) else None
    return (
        f"format version {header.format_version}, and this vlkv reads {' and '.join(map(str, READ_VERSIONS))}: "
        f"export and build the checkpoint anew, or use the vlkv that wrote it ({show(writer or 'unknown')})"
    )


def check(manifest: Manifest, name: str = NAME) -> None:
    """Check relations between fields, which a schema can't express. Raises `EngineError` with the fields' values."""

    def need(true: bool, text: str) -> None:
        if not true:
            raise EngineError(f"{name}: {text}")

    text, table, files = manifest.text, manifest.embedding, manifest.files
    need(text.layers <= MAX_LAYERS, f"text: layers {text.layers} are more than {MAX_LAYERS}")
    groups = f"query_heads {text.query_heads} is no multiple of kv_heads {text.kv_heads}"
    need(text.query_heads % text.kv_heads == 0, f"text: {groups}")
    windows = text.layer_windows
    seen = (
        f"layer_windows {list(windows)} is not a window of at least 2, or 0, for each of {text.layers} layers"
    )
    need(not windows or (len(windows) == text.layers and 1 not in windows), f"text: {seen}")
    shape = f"{list(table.shape)} is not [vocab, hidden] = [{text.vocab}, {text.hidden}]"
    need(table.shape == (text.vocab, text.hidden), f"embedding: shape {shape}")
    wrong = problem(manifest.image)
    need(wrong is None, f"image: {wrong}")
    wrong = None if manifest.video is None else video_problem(manifest.video)
    need(wrong is None, f"video: {wrong}")
    pair = f"kind {manifest.kind!r} does not go with backend {manifest.backend!r}"
    need((manifest.kind == "graphs") == (manifest.backend == "none"), pair)
    compiled = manifest.backend in ("tensorrt", "tensorrt-rtx")
    pair = f"backend {manifest.backend!r} and device do not go together"
    need(manifest.device is not None or not compiled, pair)
    on_cuda = manifest.device is not None and manifest.device.cache == "in-place"
    kept = ("float16", "bfloat16", "int8-channel", "float8")
    on_cuda &= manifest.backend == "onnxruntime" and manifest.cache_dtype in kept
    need(manifest.device is None or compiled or on_cuda, pair)
    rounded = "weights int8 of a vlkv whose products rounded the activations too; build the engine anew"
    need(manifest.weights != "int8" or manifest.prompt_precision is not None, rounded)
    for file, facts in files.items():
        need(_is_plain(file), f"files: {file!a} is not a plain file name")
        need(manifest.kind == "graphs" or facts.sha256 is not None, f"files: {file} has no sha256")
    need(table.file in files, f"embedding: file {table.file!a} is not among the files")
    end, size = table.offset + prod(table.shape) * BYTES[table.dtype], files[table.file].size
    need(end <= size, f"embedding: ends at byte {end} of {table.file}, which has {size}")


def _is_plain(name: str) -> bool:
    return (
        0 < len(name) <= 255
        and name not in {".", "..", NAME}
        and name.isprintable()
        and not any(sign in name for sign in "/\\:")
    )


def is_manifest(directory: Path) -> bool:
    """Return whether the directory holds a vlkv manifest of any format version. Never raises."""
    try:
        return msgspec.json.decode(_load(directory), type=_Header).kind in ("graphs", "lowered", "engine")
    except (EngineError, msgspec.MsgspecError, UnicodeError, RecursionError):
        return False


def _load(directory: Path) -> bytes:
    path = directory / NAME
    try:
        if not directory.is_dir():
            raise EngineError(f"{show(directory)}: no such directory")
        if not path.is_file():
            raise EngineError(f"{show(directory)} holds no {NAME}: not a graph or engine directory")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, EngineError):
            raise
        raise EngineError(f"{show(path)}: {reason(error)}") from error
    if len(data) > MAX_BYTES:
        raise EngineError(f"{show(path)} is larger than {MAX_BYTES} bytes")
    return data


def read(directory: Path) -> Manifest:
    """Read the manifest of a graph or engine directory. Every failure is an `EngineError` of one line."""
    return decode(_load(directory), show(directory / NAME))


def verify(
    directory: Path,
    manifest: Manifest,
    hashes: bool = True,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Check that every file exists, with its size and (with `hashes`) its SHA-256. Raises `EngineError`.

    A symbolic link may leave the directory only if the manifest has a hash of what it names: an archive could otherwise
    bring a link to any file of this machine, and have it copied into an engine.

    All sizes are checked before the first hash. `progress` is called with bytes hashed, from several threads.
    """
    for name, facts in manifest.files.items():
        path = directory / name
        try:
            if not path.is_file():
                raise EngineError(f"{show(path)}: missing")
            size = path.stat().st_size
            outside = path.is_symlink() and path.resolve().parent != directory.resolve()
        except OSError as error:
            raise EngineError(f"{show(path)}: {reason(error)}") from error
        if outside and facts.sha256 is None:
            raise EngineError(
                f"{show(path)} is a link to a file outside its directory, and the manifest has no hash of it; "
                "put the file itself there"
            )
        if size != facts.size:
            raise EngineError(
                f"{show(path)} has {size} bytes, the manifest says {facts.size}: changed or truncated"
            )
    wanted = {directory / name: facts.sha256 for name, facts in manifest.files.items() if facts.sha256}
    for path, found in hash_files(wanted if hashes else (), progress).items():
        if found != wanted[path]:
            raise EngineError(f"{show(path)} is changed: SHA-256 {found}, the manifest says {wanted[path]}")


def write(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, whole or not at all. A manifest that `read` would refuse is an `EngineError`."""
    data = encode(manifest)
    decode(data, show(directory / NAME))
    write_bytes(directory / NAME, data)
