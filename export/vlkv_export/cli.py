"""`vlkv export` and `vlkv build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlkv.cli.console import notes, progress

Source = Annotated[Path, typer.Argument(show_default=False)]
Target = Annotated[Path, typer.Option("-o", "--output", show_default=False, help="The directory to write.")]
DEVICE = "TensorRT"


def export(
    checkpoint: Source,
    output: Target,
    copy: Annotated[
        bool,
        typer.Option(
            "--copy", help="Copy the weights: onnx.load and onnx.checker refuse files with hard links."
        ),
    ] = False,
) -> None:
    """Write the graphs of a Hugging Face LLaVA checkpoint. Its weights are cloned where the disk can, else linked."""
    from vlkv_export.directory import export_checkpoint
    from vlkv_export.watch import Watch

    def tell(note: str) -> None:
        notes().print(f"note: {note}", soft_wrap=True)

    with progress() as bar:
        watch = Watch(bar.step, bar.advance, bar.total) if copy else None
        export_checkpoint(checkpoint, output, bar.step, tell, watch)
        bar.done(f"wrote {output}")


def build(
    graphs: Source,
    output: Target,
    backend: Annotated[str, typer.Option(help="onnxruntime, tensorrt-rtx or tensorrt.")] = "onnxruntime",
    operators: Annotated[
        str | None,
        typer.Option(
            help="native (vlkv's kernels or plugin) or functions (ONNX bodies).",
            show_default="native; TensorRT without --plugin: functions",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16; int8 or int4: the text model's matrices in 8 or 4 bits (onnxruntime).",
            show_default="as the checkpoint has them",
        ),
    ] = None,
    prompt_precision: Annotated[
        str | None,
        typer.Option(
            help="float32, or bfloat16: products of prompts, on processors with AVX512_BF16 (onnxruntime).",
            show_default="float32",
        ),
    ] = None,
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            help="Hard-link the checkpoint's weights where they are taken as they are. It saves their space; but "
            "writing to the checkpoint's files then changes the engine, or crashes it while it runs.",
        ),
    ] = False,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            help="A GPU to build for, as in 8.9; may be given several times.", rich_help_panel=DEVICE
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float16, bfloat16 or float32.",
            show_default="the checkpoint's; float32: float16",
            rich_help_panel=DEVICE,
        ),
    ] = None,
    capacity: Annotated[
        int | None,
        typer.Option(
            help="Most cache slots: prompt and answer.",
            show_default="all positions",
            rich_help_panel=DEVICE,
        ),
    ] = None,
    max_batch: Annotated[
        int, typer.Option(help="Most prompts that decode together.", rich_help_panel=DEVICE)
    ] = 4,
    chunk: Annotated[int, typer.Option(help="Most prompt tokens of a call.", rich_help_panel=DEVICE)] = 1024,
    cache: Annotated[
        str | None,
        typer.Option(
            help="dynamic (caches of any capacity, written anew), static (of one capacity, updated in place) or "
            "in-place (the plugin's: of any capacity, updated in place; the default where it fits).",
            rich_help_panel=DEVICE,
        ),
    ] = None,
    plugin: Annotated[
        Path | None,
        typer.Option(help="libvlkv_tensorrt.so, to score and evict.", rich_help_panel=DEVICE),
    ] = None,
    lower_only: Annotated[
        bool,
        typer.Option(
            "--lower-only",
            help="Write lowered graphs for other builders; needs no TensorRT.",
            rich_help_panel=DEVICE,
        ),
    ] = False,
) -> None:
    """Lower a graph directory for one backend."""
    from vlkv_export.engine import build_engine
    from vlkv_export.targets.spec import Settings
    from vlkv_export.watch import Watch

    capabilities = tuple(dict.fromkeys(compute_capability or ()))
    settings = Settings(capabilities, dtype, capacity, max_batch, chunk, cache, plugin, lower_only)
    with progress() as bar:
        watch = Watch(bar.step, bar.advance, bar.total)
        build_engine(graphs, output, backend, operators, watch, settings, weights, prompt_precision, link)
        bar.done(f"wrote {output}")
