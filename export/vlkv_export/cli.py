"""`vlkv export`, `vlkv adopt` and `vlkv build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlkv.cli.console import notes, progress
from vlkv.cli.paths import path

Source = Annotated[Path, typer.Argument(show_default=False, parser=path)]
Target = Annotated[
    Path, typer.Option("-o", "--output", show_default=False, help="The directory to write.", parser=path)
]
DEVICE = "TensorRT"


def export(
    checkpoint: Source,
    output: Target,
    tower: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help="The folder of the vision tower, for checkpoints of the original LLaVA, which name it only.",
            parser=path,
        ),
    ] = None,
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            help="Hard-link the checkpoint's weights. It saves their space; but onnx.load and onnx.checker refuse "
            "such files, and writing to the checkpoint's files changes them.",
        ),
    ] = False,
) -> None:
    """Write the graphs of a LLaVA checkpoint, and a copy of its weights."""
    from vlkv_export.directory import export_checkpoint
    from vlkv_export.watch import Watch

    def tell(note: str) -> None:
        notes().print(f"note: {note}", soft_wrap=True)

    with progress() as bar:
        watch = Watch(data=bar.advance, total=bar.total)
        export_checkpoint(checkpoint, output, bar.step, tell, tower, watch, link)
        bar.done(f"wrote {output}")


def adopt(
    folder: Source,
    output: Target,
    decoder: Annotated[
        str | None,
        typer.Option(help="The decoder's file in the folder.", show_default="the exporter's usual name"),
    ] = None,
    vision: Annotated[
        Path | None,
        typer.Option(
            help="A LLaVA checkpoint with the same text model, for its vision tower.",
            show_default="text alone",
            parser=path,
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Run the original graph too and compare logits; takes the model's memory.")
    ] = True,
) -> None:
    """Write the graphs of a decoder that onnxruntime-genai, Optimum or onnx-community exported."""
    from vlkv_export.adopt.directory import adopt_folder

    with progress() as bar:
        adopt_folder(
            folder,
            output,
            decoder,
            vision,
            check,
            bar.step,
            lambda note: notes().print(f"note: {note}", markup=False),
        )
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
            help="float32, bfloat16, float16, or int8 or int4 for the text model's matrices (onnxruntime).",
            show_default="the checkpoint's",
        ),
    ] = None,
    prompt_precision: Annotated[
        str | None,
        typer.Option(
            help="What products compute in: float32; fixed16 for int8 and int4 weights; or, for prompts, bfloat16 "
            "(onnxruntime).",
            show_default="fixed16 with int8 and int4 weights, else float32",
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
    kv_dtype: Annotated[
        str | None,
        typer.Option(
            help="The KV cache: float32, float16, bfloat16, or int8 with a scale per token and KV head (onnxruntime). "
            "With --dtype and --operators functions: int8 with a scale per channel, or float8.",
            show_default="float32",
        ),
    ] = None,
    passes: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: the optional lowering passes that run, in their order (onnxruntime on CPUs); see "
            "docs/tune.md.",
            show_default="all",
        ),
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(help="A GPU to build for, such as 8.9; repeat it for several.", rich_help_panel=DEVICE),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float16, bfloat16 or float32; with onnxruntime float16 or bfloat16, for --device cuda.",
            show_default="the checkpoint's; float32: float16; onnxruntime: an engine for CPUs",
            rich_help_panel=DEVICE,
        ),
    ] = None,
    capacity: Annotated[
        int | None,
        typer.Option(
            help="Most cache slots of prompt and answer.",
            show_default="the model's positions",
            rich_help_panel=DEVICE,
        ),
    ] = None,
    max_batch: Annotated[
        int, typer.Option(help="Most prompts that decode together.", rich_help_panel=DEVICE)
    ] = 4,
    chunk: Annotated[int, typer.Option(help="Most prompt tokens per call.", rich_help_panel=DEVICE)] = 1024,
    cache: Annotated[
        str | None,
        typer.Option(
            help="dynamic (any capacity, each call writes a new cache), static (one capacity, updated in place) or "
            "in-place (any capacity, updated in place by the plugin; the default if the plugin supports it).",
            rich_help_panel=DEVICE,
        ),
    ] = None,
    plugin: Annotated[
        Path | None,
        typer.Option(help="libvlkv_tensorrt.so, to score and evict.", rich_help_panel=DEVICE, parser=path),
    ] = None,
    lower_only: Annotated[
        bool,
        typer.Option(
            "--lower-only",
            help="Write lowered graphs for other builders, without TensorRT.",
            rich_help_panel=DEVICE,
        ),
    ] = False,
) -> None:
    """Lower a graph directory for one backend."""
    from vlkv_export.engine import build_engine
    from vlkv_export.quality import lines
    from vlkv_export.targets.spec import Settings
    from vlkv_export.watch import Watch

    capabilities = tuple(dict.fromkeys(compute_capability or ()))
    settings = Settings(capabilities, dtype, capacity, max_batch, chunk, cache, plugin, lower_only)
    with progress() as bar:
        watch = Watch(bar.step, bar.advance, bar.total)
        build_engine(
            graphs,
            output,
            backend,
            operators,
            watch,
            settings,
            weights,
            prompt_precision,
            link,
            kv_dtype,
            None if passes is None else [name.strip() for name in passes.split(",") if name.strip()],
        )
        bar.done(f"wrote {output}")
    if backend == "onnxruntime" and operators != "functions":
        for line in lines(weights, prompt_precision, kv_dtype):
            notes().print(line, soft_wrap=True)
