"""`vlkv export` and `vlkv build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlkv.cli.console import progress

Source = Annotated[Path, typer.Argument(show_default=False)]
Target = Annotated[Path, typer.Option("-o", "--output", show_default=False, help="The directory to write.")]


def export(checkpoint: Source, output: Target) -> None:
    """Write the graphs of a Hugging Face LLaVA checkpoint; its weights are linked, not copied."""
    from vlkv.export.directory import export_checkpoint

    with progress() as bar:
        export_checkpoint(checkpoint, output, bar.step)
        bar.done(f"wrote {output}")


def build(
    graphs: Source,
    output: Target,
    backend: Annotated[str, typer.Option(help="onnxruntime")] = "onnxruntime",
    operators: Annotated[
        str, typer.Option(help="native (vlkv's kernels) or functions (ONNX bodies)")
    ] = "native",
) -> None:
    """Lower a graph directory for one backend."""
    from vlkv.export.engine import Watch, build_engine

    with progress() as bar:
        build_engine(graphs, output, backend, operators, Watch(bar.step, bar.advance, bar.total))
        bar.done(f"wrote {output}")
