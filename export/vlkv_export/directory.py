"""`vlkv export`: writes the graph directory of a checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vlkv.storage.directories import check_apart, new_directory
from vlkv.storage.files import copy_file, hash_file
from vlkv.storage.manifest import FORMAT_VERSION, Embedding, FileFacts, Manifest, TextFacts, write
from vlkv_export.checkpoint import Checkpoint
from vlkv_export.checkpoint.facts import Dtype
from vlkv_export.checkpoint.layout import EMBEDDING
from vlkv_export.graph.builder import DTYPES
from vlkv_export.models import build_decoder, build_video, build_vision, read_checkpoint
from vlkv_export.ops import compress_model
from vlkv_export.watch import Watch
from vlkv_export.weights.files import place_weights
from vlkv_export.weights.merge import merge
from vlkv_export.weights.repack import repack

Report = Callable[[str], None]
WEIGHTS = ".safetensors"
FORMS = "forms.json"
"""The word list of a checkpoint's forms, for `vlkv eval`; it is copied if the checkpoint has one."""
WATCH = Watch()
LINKED = (
    "the weights are hard links: until the engine is built, do not write to the checkpoint's files; "
    "onnx.load and onnx.checker refuse such files, export without --link writes others"
)


def export_checkpoint(
    source: Path,
    target: Path,
    report: Report = lambda step: None,
    tell: Report = lambda note: None,
    tower: Path | None = None,
    watch: Watch = WATCH,
    link: bool = False,
) -> Manifest:
    """Writes the graph directory of the checkpoint in `source`; `target` appears whole or not at all.

    Args:
        source: a Hugging Face folder.
        target: the graph directory to make.
        report: called with the name of each step as it begins.
        tell: called with a note on each setting of the checkpoint that the engine will not honour,
            and of what links to its weights mean.
        tower: the folder of the vision tower, for checkpoints of the original LLaVA.
        watch: told of the progress of copying the weights, which are cloned where the file system can.
        link: whether they are hard links where they can't be cloned.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or not supported.
        EngineError: `target` exists and is not a directory of vlkv.
    """
    report("reading the checkpoint")
    checkpoint = read_checkpoint(source, tower)
    for note in checkpoint.notes:
        tell(note)
    dtype = compute_dtype(checkpoint)
    check_apart(checkpoint.folder, target)
    with new_directory(target) as folder:
        report(f"{'linking' if link else 'copying'} the weights")
        if place_weights(checkpoint.weight_files(), folder, watch, link):
            tell(LINKED)
        placed, floats = repack(checkpoint.folder, folder, checkpoint.coded, report)
        if checkpoint.merges:
            report("merging the adapter")
        floats |= merge(checkpoint.folder, folder, checkpoint.tensors, checkpoint.merges)
        checkpoint = replace(checkpoint, placed=placed, tensors=checkpoint.tensors | floats)
        for name in checkpoint.tokenizer_files:
            copy_file(checkpoint.folder / name, folder / name)
        for name, data in checkpoint.written.items():
            (folder / name).write_bytes(data)
        if (checkpoint.folder / FORMS).is_file():
            copy_file(checkpoint.folder / FORMS, folder / FORMS)
        for name, build in (("vision", build_vision), ("decoder", build_decoder)):
            report(f"building the {name} graph")
            ir.save(build(checkpoint, dtype), folder / f"{name}.onnx")
        video = build_video(checkpoint, dtype)
        if video is not None:
            report("building the video graph")
            ir.save(video, folder / "video.onnx")
        report("building the compress graph")
        ir.save(
            compress_model(DTYPES[dtype], checkpoint.text.kv_heads, checkpoint.text.head_dim),
            folder / "compress.onnx",
        )
        manifest = describe(checkpoint, dtype, folder)
        write(folder, manifest)
    return manifest


def compute_dtype(checkpoint: Checkpoint) -> Dtype:
    """The dtype of most elements of the text model's weights."""
    sizes: Counter[Dtype] = Counter()
    for name, tensor in checkpoint.tensors.items():
        if name.startswith("text."):
            sizes[tensor.dtype] += tensor.length
    return sizes.most_common(1)[0][0]


def describe(checkpoint: Checkpoint, dtype: Dtype, folder: Path) -> Manifest:
    """The manifest of a graph directory whose files are in `folder`."""
    text = checkpoint.text
    table = checkpoint.tensors[EMBEDDING]
    vocab, hidden = table.shape
    return graph_manifest(
        folder,
        cache_dtype=dtype,
        text=TextFacts(
            architecture=text.architecture,
            layers=text.layers,
            query_heads=text.query_heads,
            kv_heads=text.kv_heads,
            head_dim=text.head_dim,
            hidden=text.hidden,
            vocab=text.vocab,
            max_positions=text.max_positions,
            layer_windows=text.windows,
        ),
        image=checkpoint.image,
        video=checkpoint.video,
        tokens=checkpoint.tokens,
        generation=checkpoint.generation,
        embedding=Embedding(
            file=table.file,
            offset=table.offset,
            dtype=table.dtype,
            shape=(vocab, hidden),
            scale=text.embed_scale,
        ),
        chat_template=checkpoint.chat_template,
    )


def graph_manifest(folder: Path, **facts: Any) -> Manifest:
    """The manifest of a graph directory with these facts of its model, and its files in `folder`."""
    return Manifest(
        format_version=FORMAT_VERSION,
        kind="graphs",
        backend="none",
        operators="functions",
        versions=versions("vlkv", "onnx", "onnx-ir", "onnxscript"),
        files=file_facts(folder, hash_weights=False),
        **facts,
    )


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of packages, by name."""
    return {name: version(name) for name in packages}


def file_facts(
    folder: Path, *, hash_weights: bool, report: Report = lambda step: None
) -> dict[str, FileFacts]:
    """Size and hash of every file. A graph directory's weights are the checkpoint's own files and are not hashed."""
    facts = {}
    for path in _files(folder):
        report(f"hashing {path.name}")
        wanted = hash_weights or path.suffix != WEIGHTS
        facts[path.name] = FileFacts(size=path.stat().st_size, sha256=hash_file(path) if wanted else None)
    return facts


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())
