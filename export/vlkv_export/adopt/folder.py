"""Reads a folder with a decoder that another exporter wrote: the exporter and the configuration.

`genai_config.json` indicates onnxruntime-genai's builder; `config.json` beside `*.onnx` indicates Optimum or
onnx-community's scripts, whose graphs are in the folder itself or in `onnx/`.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from vlkv.errors import CheckpointError
from vlkv.storage.files import reason, show
from vlkv_export.adopt.facts import Source
from vlkv_export.checkpoint.fields import Fields, read_object
from vlkv_export.graphs import external_tensors

GENAI = "genai_config.json"
NAMES = (
    "decoder_model_merged.onnx",
    "model.onnx",
    "decoder_with_past_model.onnx",
    "decoder_model.onnx",
)
"""The names that Optimum and onnx-community give a decoder with a cache; the first existing file is used."""
PAST = ("past_key_values.%d.key", "past_key_values.%d.value")
PRESENT = ("present.%d.key", "present.%d.value")


def read_folder(folder: Path, graph: str | None = None) -> Source:
    """Finds the decoder and reads its configuration.

    Args:
        folder: the exporter's output.
        graph: the decoder's file in the folder, if it has an unusual name.

    Raises:
        CheckpointError: there is no configuration or no decoder, or a field is missing or wrong.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give what onnxruntime-genai or Optimum wrote")
    if (folder / GENAI).is_file():
        return _genai(folder, graph)
    if (folder / "config.json").is_file():
        return _transformers(folder, graph)
    raise CheckpointError(
        f"{folder} has neither {GENAI} nor config.json; give what onnxruntime-genai or Optimum wrote"
    )


def load_graph(path: Path) -> ir.Model:
    """Loads a graph with weights by reference. Raises `CheckpointError` if it is not an ONNX model."""
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf and onnx-ir raise any exception on damaged bytes
        raise CheckpointError(f"{path}: not an ONNX model: {reason(error)}") from None
    if not model.graph.outputs:
        raise CheckpointError(f"{path}: not an ONNX model: it has no outputs")
    _check_files(model, path)
    return model


def _check_files(model: ir.Model, graph: Path) -> None:
    """Checks that all weights are in plain files beside the graph, and within their sizes."""
    for tensor in external_tensors(model):
        name = str(tensor.location)
        if not _is_plain(name):
            raise CheckpointError(
                f"{graph}: weight {show(tensor.name)} lies in {name!a:.80}, not beside the graph"
            )
        path = graph.parent / name
        size = path.stat().st_size if path.is_file() else -1
        begin = tensor.offset or 0
        end = begin + (tensor.nbytes if tensor.length is None else tensor.length)
        if size < end or not 0 <= begin <= end:
            found = "is missing" if size < 0 else f"has {size} bytes"
            raise CheckpointError(f"{path} {found}; weight {show(tensor.name)} is bytes {begin} to {end}")


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file in the folder itself."""
    return Path(name).name == name and name not in (".", "..")


def _genai(folder: Path, graph: str | None) -> Source:
    config = Fields(read_object(folder / GENAI), str(folder / GENAI))
    model = config.child("model")
    decoder = model.child("decoder")
    names, made = decoder.child("inputs"), decoder.child("outputs")
    files = {"decoder": decoder.string("filename", "model.onnx")}
    for part in ("embedding", "vision"):
        if part in model and "filename" in model.child(part):
            files[part] = model.child(part).string("filename")
    for file in files.values():
        if not _is_plain(file):
            raise CheckpointError(
                f"{folder / GENAI}: filename {file!a:.80} is not the name of a file beside it"
            )
    apart = {part: _graph(folder, file) for part, file in files.items() if part != "decoder"}
    return Source(
        folder=folder,
        graph=_graph(folder, graph or files["decoder"]),
        exporter="onnxruntime-genai",
        architecture=model.string("type", "llama"),
        past=(names.string("past_key_names", PAST[0]), names.string("past_value_names", PAST[1])),
        present=(
            made.string("present_key_names", PRESENT[0]),
            made.string("present_value_names", PRESENT[1]),
        ),
        logits=made.string("logits", "logits"),
        layers=decoder.integer("num_hidden_layers", low=1),
        query_heads=decoder.integer("num_attention_heads", low=1),
        kv_heads=decoder.integer("num_key_value_heads", low=1),
        head_dim=decoder.integer("head_size", low=1),
        hidden=decoder.integer("hidden_size", low=1),
        vocab=model.integer("vocab_size", low=1),
        max_positions=model.integer("context_length", low=1),
        sliding_window=None,
        **apart,
    )


def _transformers(folder: Path, graph: str | None) -> Source:
    config = Fields(read_object(folder / "config.json"), str(folder / "config.json"))
    text = config.child("text_config") if "text_config" in config else config
    heads, hidden = text.integer("num_attention_heads", low=1), text.integer("hidden_size", low=1)
    positions = text.integer("max_position_embeddings", low=1)
    window = text.integer("sliding_window", 0, low=0) if text.get("use_sliding_window") is not False else 0
    found = _graph(folder, graph)
    return Source(
        folder=folder,
        graph=found,
        exporter="Optimum or onnx-community",
        architecture=text.string("model_type", "llama"),
        past=PAST,
        present=PRESENT,
        logits="logits",
        layers=text.integer("num_hidden_layers", low=1),
        query_heads=heads,
        kv_heads=text.integer("num_key_value_heads", heads, low=1),
        head_dim=text.integer("head_dim", hidden // heads, low=1),
        hidden=hidden,
        vocab=text.integer("vocab_size", low=1),
        max_positions=min(positions, window or positions),
        sliding_window=window or None,
        embedding=_beside(found, "embed_tokens"),
        vision=_beside(found, "vision_encoder"),
    )


def _beside(decoder: Path, name: str) -> Path | None:
    """The part of that name beside a decoder, of the decoder's precision (`_fp16`, `_q4`) if there is one."""
    ending = decoder.stem.removeprefix("decoder_model_merged")
    wanted = (f"{name}{ending}.onnx", f"{name}.onnx")
    return next((decoder.parent / one for one in wanted if (decoder.parent / one).is_file()), None)


def _graph(folder: Path, name: str | None) -> Path:
    wanted = (name,) if name else NAMES
    for found in (folder / part / one for one in wanted for part in ("", "onnx")):
        if found.is_file():
            return found
    there = sorted(path.name for path in [*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")])
    raise CheckpointError(
        f"{folder} has no {' or '.join(wanted)}, but {', '.join(there[:6]) or 'no graphs'}; "
        "name the decoder with --decoder"
    )
