"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlkv.cli.paths import path

EngineFolder = Annotated[
    Path, typer.Argument(show_default=False, help="Engine directory from vlkv build.", parser=path)
]
Pictures = Annotated[list[Path] | None, typer.Option(help="A picture; repeatable.", parser=path)]
Videos = Annotated[
    list[Path] | None,
    typer.Option(
        help="A video: GIF, WebP, .npy of frames, folder of pictures, or what PyAV decodes; repeatable.",
        parser=path,
    ),
]
Frames = Annotated[
    int | None,
    typer.Option(help="Most frames of a video, taken evenly.", show_default="the checkpoint's, or all"),
]
OneBudget = Annotated[
    float | None,
    typer.Option(
        help="Share of the prompt's cache to keep, in (0, 1].",
        show_default="0.1, at least 64 tokens per layer, 256 without a picture; full: 1",
    ),
]
Prune = Annotated[
    str | None,
    typer.Option(
        help="Image tokens to leave out before prefill: duplicates, blank, diverse:SHARE, or relevant:SHARE.",
        show_default="none",
    ),
]
Recall = Annotated[
    float | None,
    typer.Option(
        help="Keep evicted tokens in host memory, and read this share of the prompt of them for each token.",
        show_default="none",
    ),
]
Raw = Annotated[bool, typer.Option("--raw", help="Use no chat template.")]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Compare sizes only, not hashes.")]
Threads = Annotated[int, typer.Option(help="Threads per operator; 0 uses all cores.")]
Tuned = Annotated[
    Path | None,
    typer.Option(
        help="Folder of vlkv tune ENGINE: its operators run on the CPU.", show_default=False, parser=path
    ),
]
Device = Annotated[str, typer.Option(help="Device: cpu, cuda, or cuda:1 for the second GPU.")]
Plugin = Annotated[
    Path | None, typer.Option(help="libvlkv_tensorrt.so, for a TensorRT engine built with it.", parser=path)
]
