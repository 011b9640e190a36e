"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EngineFolder = Annotated[Path, typer.Argument(show_default=False, help="What vlkv build wrote.")]
Pictures = Annotated[list[Path] | None, typer.Option(help="A picture; may be given several times.")]
OneBudget = Annotated[
    float | None,
    typer.Option(
        help="Share of the prompt's cache to keep, in (0, 1].",
        show_default="0.1, 64 tokens a layer at least; full: 1",
    ),
]
Raw = Annotated[bool, typer.Option("--raw", help="No chat template.")]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Compare sizes only, not hashes.")]
Threads = Annotated[int, typer.Option(help="Threads of one operator; 0 takes all cores.")]
Device = Annotated[str, typer.Option(help="Where ONNX Runtime runs: cpu or cuda.")]
Plugin = Annotated[
    Path | None, typer.Option(help="libvlkv_tensorrt.so, for a TensorRT engine built with it.")
]
