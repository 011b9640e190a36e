"""`vlkv adopt`: writes the graph directory of a decoder that another exporter wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from vlkv.errors import CheckpointError
from vlkv.inputs.embedding import TokenEmbedding
from vlkv.storage.directories import new_directory
from vlkv.storage.files import copy_file
from vlkv.storage.image_facts import ImageFacts, takes_pictures, text_alone
from vlkv.storage.manifest import (
    Embedding,
    GenerationFacts,
    Manifest,
    TextFacts,
    TokenFacts,
    write,
)
from vlkv_export.adopt import check
from vlkv_export.adopt import weights as adopted_weights
from vlkv_export.adopt.decoder import adopt_decoder
from vlkv_export.adopt.facts import Source
from vlkv_export.adopt.folder import GENAI, load_graph, read_folder
from vlkv_export.adopt.vision import adopt_vision, save_vision
from vlkv_export.adopt.vision import compare as compare_vision
from vlkv_export.checkpoint import Checkpoint, generation, prompt
from vlkv_export.checkpoint.fields import Fields, read_object
from vlkv_export.checkpoint.layout import HEAD
from vlkv_export.checkpoint.tokenizer import NAME as TOKENIZER
from vlkv_export.checkpoint.tokenizer import AddedTokens
from vlkv_export.directory import compute_dtype, graph_manifest
from vlkv_export.graph.builder import DTYPES as IR_DTYPES
from vlkv_export.models import build_vision, read_checkpoint, read_image_facts
from vlkv_export.ops import compress_model
from vlkv_export.weights.convert import NAMES
from vlkv_export.weights.files import write_weights

Report = Callable[[str], None]
VISION = "vision.safetensors"
NONE = {"bos": None, "eos": None, "pad": None}


def adopt_folder(
    folder: Path,
    target: Path,
    decoder: str | None = None,
    vision: Path | None = None,
    compared: bool = True,
    report: Report = lambda step: None,
    tell: Report = lambda note: None,
) -> Manifest:
    """Writes the graph directory of a foreign decoder; `target` appears whole or not at all.

    Args:
        folder: the output of onnxruntime-genai's builder, Optimum or onnx-community's scripts.
        target: the graph directory to make.
        decoder: the decoder's file in the folder, if it has an unusual name.
        vision: a LLaVA checkpoint with the same text model, whose tower, tokenizer and prompts are used; with None the
            engine accepts text only.
        compared: whether to run both graphs and compare their logits, which needs the model's memory once.
        report: called with the name of each step as it begins.
        tell: called with a line about each kind of rewriting.

    Raises:
        CheckpointError: the folder or its graph is not supported, or the result's logits differ.
        EngineError: `target` exists and is not a directory of vlkv.
    """
    report("reading the folder")
    source = read_folder(folder, decoder)
    sight = None if vision is None else _sight(source, vision)
    texts = _texts(source) if sight is None else _texts_of(sight)
    image = _image(source) if sight is None else sight.image
    tower = source.vision if sight is None and takes_pictures(image) else None
    report("rewriting the decoder")
    apart = None if source.embedding is None else load_graph(source.embedding)
    adopted = adopt_decoder(load_graph(source.graph), source, apart)
    turned = adopted_weights.turn_matrices(adopted.model)
    for name, count in {**adopted.counts, "matrix": turned}.items():
        tell(f"{name}: {count} rewritten")
    with new_directory(target) as made:
        report("writing the weights")
        offset, dtype = adopted_weights.write(adopted, source, made)
        for name in texts.files:
            copy_file(texts.folder / name, made / name)
        for name, data in texts.written.items():
            (made / name).write_bytes(data)
        if sight is not None:
            report("building the vision graph")
            ir.save(_vision(sight, made), made / "vision.onnx")
        elif tower is not None:
            report("rewriting the vision graph")
            save_vision(adopt_vision(tower, image, source.hidden), made)
        ir.save(adopted.model, made / "decoder.onnx")
        ir.save(
            compress_model(IR_DTYPES[adopted.dtype], source.kv_heads, source.head_dim), made / "compress.onnx"
        )
        window = adopted.window or source.sliding_window
        manifest = graph_manifest(
            made,
            cache_dtype=adopted.dtype,
            text=TextFacts(
                architecture=source.architecture,
                layers=source.layers,
                query_heads=source.query_heads,
                kv_heads=source.kv_heads,
                head_dim=source.head_dim,
                hidden=source.hidden,
                vocab=source.vocab,
                max_positions=min(source.max_positions, window or source.max_positions),
                sliding_window=window,
            ),
            image=image,
            tokens=texts.tokens,
            generation=texts.settings,
            embedding=Embedding(
                file=adopted_weights.FILE,
                offset=offset,
                dtype=NAMES[dtype],
                shape=(source.vocab, source.hidden),
            ),
            chat_template=texts.template,
        )
        write(made, manifest)
        if compared:
            report("comparing logits with the original's")
            rows = TokenEmbedding(made, manifest.embedding).rows(check.tokens(source))
            worst = check.compare(source, made, rows, adopted.dtype, adopted.codes)
            tell(f"logits differ from the original's by {worst:.1e} of the largest")
            if tower is not None:
                worst = compare_vision(tower, made, image)
                tell(f"pictures' features differ from the original's by {worst:.1e} of the largest")
    return manifest


@dataclass(frozen=True)
class _Texts:
    """The files beside the graph: tokenizer, BOS and EOS ids, generation settings, and the chat template."""

    folder: Path
    files: tuple[str, ...]
    written: Mapping[str, bytes]
    tokens: TokenFacts
    settings: GenerationFacts
    template: str | None


def _texts(source: Source) -> _Texts:
    folder = source.folder
    if (folder / GENAI).is_file():
        config = Fields(read_object(folder / GENAI), str(folder / GENAI))
        search = config.child("search")
        settings = GenerationFacts(
            repetition_penalty=search.number("repetition_penalty", 1.0),
            no_repeat_ngram_size=search.integer("no_repeat_ngram_size", 0, low=0),
            min_length=search.integer("min_length", 0, low=0),
        )
        config = config.child("model")
    else:
        config = Fields(read_object(folder / "config.json"), str(folder / "config.json"))
        settings, _ = generation.read_generation(folder, source.vocab)
    added = AddedTokens(folder)
    return _Texts(
        folder,
        added.files(folder),
        {} if added.written is None else {TOKENIZER: added.written},
        prompt.read_tokens(folder, config, source.vocab, NONE),
        settings,
        prompt.read_chat_template(folder),
    )


def _texts_of(checkpoint: Checkpoint) -> _Texts:
    return _Texts(
        checkpoint.folder,
        checkpoint.tokenizer_files,
        checkpoint.written,
        checkpoint.tokens,
        checkpoint.generation,
        checkpoint.chat_template,
    )


def _image(source: Source) -> ImageFacts:
    """How pictures become tokens, where the folder has a vision tower; else text alone."""
    if source.vision is None:
        return text_alone(source.vocab)
    if not (source.folder / "config.json").is_file():
        raise CheckpointError(
            f"{source.folder} has {source.vision.name}, and no config.json that says how pictures become tokens; "
            "copy config.json and the processor's file of the checkpoint into it, or give the checkpoint with --vision"
        )
    return read_image_facts(source.folder)


def _sight(source: Source, vision: Path) -> Checkpoint:
    """Reads the checkpoint whose tower is used. Raises `CheckpointError` if its text model has other sizes."""
    checkpoint = read_checkpoint(vision)
    ours, theirs = (source.hidden, source.vocab), (checkpoint.text.hidden, checkpoint.text.vocab)
    if ours != theirs:
        raise CheckpointError(
            f"{vision}: its text model has hidden size and vocabulary {theirs}, the decoder {ours}; "
            "give the checkpoint that the decoder was exported from"
        )
    return checkpoint


def _vision(checkpoint: Checkpoint, made: Path) -> ir.Model:
    """Builds the vision graph, and writes only its weights into the directory."""
    own = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if not name.startswith("text.") and name != HEAD
    }
    placed = write_weights(checkpoint.folder, made / VISION, own, set(own))
    return build_vision(replace(checkpoint, tensors=placed), compute_dtype(checkpoint))
