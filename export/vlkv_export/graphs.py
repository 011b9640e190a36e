"""Reads the graphs of a graph directory, and checks that they refer only to files in its manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from vlkv.errors import EngineError
from vlkv.storage.files import reason, show
from vlkv.storage.manifest import Manifest, vision_graphs
from vlkv_export.targets.spec import GRAPHS


def load_graphs(source: Path, manifest: Manifest) -> dict[str, ir.Model]:
    """Reads the graphs, by name.

    Raises:
        EngineError: a graph is not in the manifest or is not an ONNX model, or its weights are in a file that is not in
            the manifest, or beyond that file's end.
    """
    names = graphs_of(manifest)
    for name in names:
        if f"{name}.onnx" not in manifest.files:
            raise EngineError(
                f"{show(source)}: the manifest lists no {name}.onnx; export the checkpoint again"
            )
    models = {}
    for name in names:
        path = source / f"{name}.onnx"
        try:
            models[name] = ir.load(path)
        except Exception as error:  # protobuf and onnx-ir raise any exception on damaged bytes
            raise EngineError(f"{show(path)}: not an ONNX model: {reason(error)}") from error
        if not models[name].graph.outputs:
            raise EngineError(f"{show(path)}: not an ONNX model: it has no outputs")
        for tensor in external_tensors(models[name]):
            _check(tensor, path, manifest)
    return models


def graphs_of(manifest: Manifest) -> tuple[str, ...]:
    """The names of a directory's graphs; a model of text alone has no vision graph, some have another for frames."""
    return (*vision_graphs(manifest), *(name for name in GRAPHS if name != "vision"))


def _check(tensor: ir.ExternalTensor, path: Path, manifest: Manifest) -> None:
    """Checks one reference. A name in the manifest is a plain file name, so no file outside the directory is read."""
    facts = manifest.files.get(str(tensor.location))
    if facts is None:
        raise EngineError(
            f"{show(path)}: weight {show(tensor.name)} lies in {str(tensor.location)!a:.80}, "
            "which the manifest does not list"
        )
    begin, length = tensor.offset or 0, tensor.length
    end = begin + (tensor.nbytes if length is None else length)
    if begin < 0 or end < begin or end > facts.size:
        raise EngineError(
            f"{show(path)}: weight {show(tensor.name)} is bytes {begin} to {end} of {tensor.location}, "
            f"which has {facts.size}"
        )


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """All tensors of a model that are stored in files: weights of its graph and subgraphs, constants of functions."""
    for graph in (model.graph, *(inner for inner in model.graph.subgraphs())):
        values = (value.const_value for value in graph.initializers.values())
        yield from (tensor for tensor in values if isinstance(tensor, ir.ExternalTensor))
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        for node in body.all_nodes():
            for attribute in node.attributes.values():
                held = attribute.value
                for tensor in held if isinstance(held, list | tuple) else (held,):
                    if isinstance(tensor, ir.ExternalTensor):
                        yield tensor
