"""The vision tower of a foreign export: `vision_encoder.onnx` of onnx-community, `vision.onnx` of onnxruntime-genai.

Applies to: one float input `[N,3,H,W]`, N open; one output with the features of each picture, `[N,P,hidden]` or
`[N*P,hidden]`, projected to the text model. How pictures are prepared, and how many tokens they have, is read from
`config.json` and the processor's file beside. A picture must be one tile: which of a grid's features are kept, and the
newline after its rows, are in no graph.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from vlkv.errors import CheckpointError
from vlkv.storage.files import reason
from vlkv.storage.image_facts import Fixed, ImageFacts
from vlkv_export.adopt.decoder import take_weights
from vlkv_export.adopt.folder import load_graph
from vlkv_export.adopt.opset import raise_opset
from vlkv_export.adopt.weights import turn_matrices, write_graph
from vlkv_export.checkpoint.facts import Dtype
from vlkv_export.graph.builder import Builder

FLOAT = ir.DataType.FLOAT
PICTURES = (1, 3)
DTYPES: dict[ir.DataType | None, Dtype] = {FLOAT: "float32", ir.DataType.FLOAT16: "float16"}
"""Dtypes of pictures: ONNX Runtime takes no bfloat16 from outside."""
TOLERANCE = {"float32": 1e-4, "float16": 1e-2}
"""Differences of features, relative to the largest: none are expected, as the nodes are the original's."""


def adopt_vision(path: Path, image: ImageFacts, hidden: int) -> ir.Model:
    """Returns the `vision` graph of a foreign tower. Raises `CheckpointError` for inputs and outputs of other kinds."""
    model = load_graph(path)
    if not isinstance(image.rule, Fixed):
        raise CheckpointError(
            f"{path}: pictures are of several tiles, and the graph does not say which features are kept; "
            "expected one tile per picture; give the checkpoint with --vision"
        )
    graph = model.graph
    raise_opset(model)
    if any(node.op_type == "If" for node in graph):
        node = next(node for node in graph if node.op_type == "If")
        raise CheckpointError(f"{path}: node {node.name!r} (If): expected a tower without branches")
    pixels = _input(path, graph, image)
    if len(graph.outputs) != 1 or len(graph.outputs[0].shape or ()) not in (2, 3):
        found = [f"{value.name} {value.shape}" for value in graph.outputs]
        raise CheckpointError(f"{path}: outputs {found}; expected one, features [N,P,hidden]")
    dtype = _dtype(pixels)
    b = Builder("vision", {}, dtype)
    b.graph.opset_imports.update({name: version for name, version in graph.opset_imports.items() if name})
    given = b.input("pixel_values", FLOAT, ["N", 3, image.height, image.width])
    take_weights(b, graph)
    ir.convenience.replace_all_uses_with(
        pixels, given if dtype == "float32" else b.op.Cast(given, to=b.dtype)
    )
    made = graph.outputs[0]
    graph.outputs.clear()
    for node in list(graph):
        graph.remove(node)
        b.graph.append(node)
    made.name = f"{made.name}.features"
    whole = b.op.Reshape(made, [-1, image.tile_features, hidden])
    b.output(b.op.Cast(whole, to=FLOAT), "image_features", FLOAT, ["N", image.tile_features, hidden])
    adopted = b.model()
    turn_matrices(adopted)
    return adopted


def save_vision(model: ir.Model, folder: Path) -> None:
    """Writes the graph, and its weights into a file of their own."""
    write_graph(model.graph, folder / "vision.safetensors")
    ir.save(model, folder / "vision.onnx")


def compare(path: Path, folder: Path, image: ImageFacts, seed: int = 0) -> float:
    """Returns the largest difference of features, relative to the largest, on random pictures.

    Raises `CheckpointError` if it is more than rounding, or the numbers of features differ.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    before, after = (ort.InferenceSession(str(one), options) for one in (path, folder / "vision.onnx"))
    given = before.get_inputs()[0]
    half = given.type == "tensor(float16)"
    rng, differences = np.random.default_rng(seed), [0.0]
    for count in PICTURES:
        pixels = rng.standard_normal((count, 3, image.height, image.width)).astype(np.float32)
        try:
            wanted = before.run(None, {given.name: pixels.astype(np.float16) if half else pixels})[0]
        except Exception as error:  # of several classes in ONNX Runtime
            raise CheckpointError(
                f"{path}: does not run for N = {count}, though N is open: {reason(error)}"
            ) from None
        wanted = wanted.astype(np.float32)
        expected = count * image.tile_features
        if wanted.size != expected * wanted.shape[-1] or wanted.shape[0] not in (count, expected):
            raise CheckpointError(
                f"{path}: {count} pictures give features {list(wanted.shape)}; "
                f"the configuration says {image.tile_features} for each"
            )
        found = after.run(None, {"pixel_values": pixels})[0].reshape(wanted.shape)
        differences.append(float(np.abs(found - wanted).max() / (np.abs(wanted).max() or 1.0)))
    worst = float(np.max(differences))
    if not worst <= TOLERANCE["float16" if half else "float32"]:
        raise CheckpointError(f"{path}: features differ from the original's by {worst:.2g} of the largest")
    return worst


def _input(path: Path, graph: ir.Graph, image: ImageFacts) -> ir.Value:
    pixels = graph.inputs[0] if len(graph.inputs) == 1 else None
    shape = None if pixels is None or pixels.shape is None else list(pixels.shape)
    sizes = (3, image.height, image.width)
    if pixels is None or shape is None or len(shape) != 4 or isinstance(shape[0], int):
        found = [f"{value.name} {value.shape}" for value in graph.inputs]
        raise CheckpointError(f"{path}: inputs {found}; expected one, pictures [N,3,H,W] with N open")
    for place, (got, size) in enumerate(zip(shape[1:], sizes, strict=True), 1):
        if isinstance(got, int) and got != size:
            raise CheckpointError(
                f"{path}: {pixels.name!r} has {got} in dimension {place}; the processor makes {size}"
            )
    return pixels


def _dtype(value: ir.Value) -> Dtype:
    if value.dtype not in DTYPES:
        raise CheckpointError(f"{value.name!r} is of {value.dtype}; expected {' or '.join(DTYPES.values())}")
    return DTYPES[value.dtype]
