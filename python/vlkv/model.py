"""`Model`: the opened parts of an engine directory that every answer needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkv.backend.base import Backend
from vlkv.backend.registry import Options, open_backend, parse_device
from vlkv.errors import EngineError
from vlkv.inputs.embedding import TokenEmbedding
from vlkv.inputs.grammar import Grammars
from vlkv.inputs.tokenizer import Tokenizer
from vlkv.storage import manifest as manifests
from vlkv.storage.manifest import Manifest

MAX_THREADS = 1024


@dataclass(frozen=True)
class Model:
    """An opened engine directory.

    Fields:
        backend: runs the graphs.
        embedding: token ids to embeddings.
        tokenizer: text to token ids and back.
        manifest: the directory's manifest.
        grammars: JSON schemas to the tokens that may come next.
    """

    backend: Backend
    embedding: TokenEmbedding
    tokenizer: Tokenizer
    manifest: Manifest
    grammars: Grammars

    @classmethod
    def of(cls, directory: Path, manifest: Manifest, backend: Backend) -> Model:
        """The model of a directory whose graphs are already open."""
        embedding = TokenEmbedding(directory, manifest.embedding)
        tokenizer = Tokenizer.load(directory, manifest.tokens, manifest.image)
        grammars = Grammars(directory, manifest.text.vocab, manifest.tokens.eos)
        return cls(backend, embedding, tokenizer, manifest, grammars)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        verify: bool = True,
        threads: int = 0,
        plugin: Path | None = None,
        device: str = "cpu",
        tuned: Path | None = None,
    ) -> Model:
        """Opens an engine directory; the arguments and errors are those of `Engine.load`."""
        name, index = parse_device(device)
        if isinstance(threads, bool) or not isinstance(threads, int) or not 0 <= threads <= MAX_THREADS:
            raise EngineError(
                f"threads {threads!r} is not a whole number from 0 (all cores) to {MAX_THREADS}"
            )
        manifest = manifests.read(directory)
        if manifest.kind == "lowered":
            raise EngineError(
                f"{directory} holds lowered graphs for other builders; build an engine without --lower-only"
            )
        if manifest.kind != "engine":
            raise EngineError(
                f"{directory} holds graphs; build an engine from them with `vlkv build {directory} -o ENGINE`"
            )
        manifests.verify(directory, manifest, hashes=verify)
        options = Options(threads, plugin, index, tuned)
        return cls.of(directory, manifest, open_backend(directory, manifest, name, options))
