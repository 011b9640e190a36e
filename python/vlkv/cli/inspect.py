"""`vlkv inspect`: what was kept of a picture, as a page and as PNGs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlkv.cli.console import answers, progress
from vlkv.policy import DEFAULT_POLICY


def inspect(
    engine: Annotated[Path, typer.Argument(show_default=False, help="What vlkv build wrote.")],
    prompt: Annotated[
        str, typer.Option(help="The question; <image> says where a picture goes.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.", show_default=False)],
    image: Annotated[list[Path] | None, typer.Option(help="A picture; may be given several times.")] = None,
    policy: Annotated[str, typer.Option(help="How the cache is compressed.")] = DEFAULT_POLICY,
    budget: Annotated[
        float | None,
        typer.Option(help="Share of the prompt's cache to keep, in (0, 1].", show_default="0.1, full: 1"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 64,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template.")] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Compare sizes only, not hashes.")] = False,
    threads: Annotated[int, typer.Option(help="Threads of one operator; 0 takes all cores.")] = 0,
    device: Annotated[str, typer.Option(help="Where ONNX Runtime runs: cpu or cuda.")] = "cpu",
    plugin: Annotated[
        Path | None, typer.Option(help="libvlkv_tensorrt.so, for a TensorRT engine built with it.")
    ] = None,
) -> None:
    """Show which patches and words each layer keeps."""
    from vlkv.engine import Engine
    from vlkv.eval.inspect_files import write
    from vlkv.eval.inspection import inspect as look
    from vlkv.eval.settings import Setting
    from vlkv.policy import check_budget, default_budget, resolve
    from vlkv.question import Question

    found = resolve(policy)
    share = default_budget(found) if budget is None else check_budget(budget, found)
    with progress(data=False) as bar:
        bar.step("opening the engine")
        opened = Engine.load(engine, verify=not no_verify, threads=threads, device=device, plugin=plugin)
        bar.step("answering")
        asked = Question(prompt, tuple(image or ()), max_new_tokens=max_new_tokens, raw=raw)
        seen = look(opened, asked, Setting(found, share))
        bar.step("drawing")
        written = write(seen, output)
    out = answers()
    out.print(f"full cache: {seen.full.text}", soft_wrap=True)
    out.print(f"{seen.policy}, budget {seen.budget:g}: {seen.small.text}", soft_wrap=True)
    out.print(f"{written[0]} and {len(written) - 1} pictures", soft_wrap=True)
