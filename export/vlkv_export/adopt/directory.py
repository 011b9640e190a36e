"""`vlkv adopt`: the graph directory of a decoder that another exporter wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from vlkv.errors import CheckpointError
from vlkv.inputs.embedding import TokenEmbedding
from vlkv.storage.directories import new_directory
from vlkv.storage.files import link_or_copy
from vlkv.storage.image_facts import text_alone
from vlkv.storage.manifest import (
    FORMAT_VERSION,
    Embedding,
    GenerationFacts,
    Manifest,
    TextFacts,
    TokenFacts,
    write,
)
from vlkv_export.adopt import check, weights
from vlkv_export.adopt.decoder import DTYPES, adopt_decoder
from vlkv_export.adopt.facts import Source
from vlkv_export.adopt.folder import GENAI, load_graph, read_folder
from vlkv_export.checkpoint import generation, prompt
from vlkv_export.checkpoint.fields import Fields, read_object
from vlkv_export.directory import file_facts, versions
from vlkv_export.graph.builder import DTYPES as IR_DTYPES
from vlkv_export.ops import compress_model

Report = Callable[[str], None]
NONE = {"bos": None, "eos": None, "pad": None}


def adopt_folder(
    folder: Path,
    target: Path,
    decoder: str | None = None,
    compared: bool = True,
    report: Report = lambda step: None,
    tell: Report = lambda note: None,
) -> Manifest:
    """Writes the graph directory of a foreign decoder; `target` appears whole or not at all.

    Args:
        folder: what onnxruntime-genai's builder, Optimum or onnx-community's scripts wrote.
        target: the graph directory to make.
        decoder: the decoder's file in the folder, where it is not the usual one.
        compared: whether to run both graphs and compare their logits; takes the model's memory, once.
        report: told the name of each step as it begins.
        tell: told what was rewritten, a line each.

    Raises:
        CheckpointError: the folder or its graph is not understood, or the result's logits are others.
        EngineError: `target` exists and is no directory of vlkv's.
    """
    report("reading the folder")
    source = read_folder(folder, decoder)
    files = prompt.tokenizer_files(folder)
    tokens, settings = _texts(source)
    report("rewriting the decoder")
    adopted = adopt_decoder(load_graph(source), source)
    turned = weights.turn_matrices(adopted.model)
    for name, count in {**adopted.counts, "matrix": turned}.items():
        tell(f"{name}: {count} rewritten")
    with new_directory(target) as made:
        report("writing the weights")
        offset, dtype = weights.write(adopted, source, made)
        for name in files:
            link_or_copy(folder / name, made / name)
        ir.save(adopted.model, made / "decoder.onnx")
        ir.save(
            compress_model(IR_DTYPES[adopted.dtype], source.kv_heads, source.head_dim), made / "compress.onnx"
        )
        window = adopted.window or source.sliding_window
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            kind="graphs",
            backend="none",
            operators="functions",
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
            image=text_alone(source.vocab),
            tokens=tokens,
            generation=settings,
            embedding=Embedding(
                file=weights.FILE,
                offset=offset,
                dtype=DTYPES[dtype],
                shape=(source.vocab, source.hidden),
            ),
            chat_template=prompt.read_chat_template(folder),
            versions=versions("vlkv", "onnx", "onnx-ir", "onnxscript"),
            files=file_facts(made, hash_weights=False),
        )
        write(made, manifest)
        if compared:
            report("comparing logits with the original's")
            rows = TokenEmbedding(made, manifest.embedding).rows(check.tokens(source))
            worst = check.compare(source, made, rows, adopted.dtype, adopted.codes)
            tell(f"logits differ from the original's by {worst:.1e} of the largest")
    return manifest


def _texts(source: Source) -> tuple[TokenFacts, GenerationFacts]:
    """The ids that start and end a text, and the settings of answers."""
    folder = source.folder
    if (folder / GENAI).is_file():
        config = Fields(read_object(folder / GENAI), str(folder / GENAI))
        search = config.child("search")
        facts = GenerationFacts(
            repetition_penalty=search.number("repetition_penalty", 1.0),
            no_repeat_ngram_size=search.integer("no_repeat_ngram_size", 0, low=0),
            min_length=search.integer("min_length", 0, low=0),
        )
        return prompt.read_tokens(folder, config.child("model"), source.vocab, NONE), facts
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json")
    config = Fields(read_object(path), str(path))
    facts, _ = generation.read_generation(folder, source.vocab)
    return prompt.read_tokens(folder, config, source.vocab, NONE), facts
