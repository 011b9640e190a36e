"""Writes the matrices of `vlkv.native.Linear` in an engine's weight format."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import onnx_ir as ir

from vlkv_export.checkpoint import Tensor
from vlkv_export.checkpoint.facts import Dtype
from vlkv_export.checkpoint.layout import EMBEDDING, HEAD
from vlkv_export.passes.products import Stored, matrices
from vlkv_export.watch import Watch
from vlkv_export.weights import convert
from vlkv_export.weights.codes import write_codes
from vlkv_export.weights.files import write_weights
from vlkv_export.weights.registry import FORMATS
from vlkv_export.weights.spec import Format


def linear_matrices(models: dict[str, ir.Model], *graphs: str) -> dict[str, Tensor]:
    """The weights of these graphs that `vlkv.native.Linear` can read in any of its formats."""
    held = (models[graph] for graph in graphs if graph in models)
    return convert.stored(weight for model in held for weight in matrices(model).values())


def store_matrices(
    source: Path, folder: Path, models: dict[str, ir.Model], weights: str | None, watch: Watch
) -> dict[str, Stored]:
    """Writes `matrices.FORMAT.safetensors` with the matrices whose format changes.

    Args:
        source: the graph directory.
        folder: the directory to write into.
        models: the graphs by name.
        weights: one of `FORMATS`; a quantised format applies to the text model only, a float format to the tower too.
            None changes no matrix, and float32 is left to the conversion of all other weights.
        watch: the progress callbacks.

    Returns:
        The replacements of matrices, by name; unchanged matrices are absent.

    Raises:
        EngineError: a weight is not finite and the format is quantised, or a finite weight is too large for float16.
    """
    if weights in (None, "float32"):
        return {}
    form, target = FORMATS[weights], folder / f"matrices.{weights}.safetensors"
    if form.layout is None:
        all_graphs = linear_matrices(
            models, *(name for name in ("decoder", "vision", "video") if name in models)
        )
        others = {name: tensor for name, tensor in all_graphs.items() if tensor.dtype != weights}
        if not others:
            return {}
        _tell(watch, f"converting the matrices to {weights}", others)
        placed = write_weights(source, target, others, set(), watch.data, cast(Dtype, weights))
        return {name: Stored((convert.external(tensor),)) for name, tensor in placed.items()}
    own = linear_matrices(models, "decoder")
    _tell(watch, f"rounding the text model's matrices to {form.bits} bits", own)
    chosen = {name: (tensor, _form_of(name, form)) for name, tensor in own.items()}
    parts = write_codes(source, target, chosen, watch.data)
    return {name: Stored(parts[name], chosen_form.bits) for name, (_, chosen_form) in chosen.items()}


def _tell(watch: Watch, step: str, tensors: dict[str, Tensor]) -> None:
    watch.step(step)
    watch.total(sum(tensor.length for tensor in tensors.values()))


def _form_of(name: str, form: Format) -> Format:
    return FORMATS[form.head] if form.head is not None and name in (EMBEDDING, HEAD) else form
