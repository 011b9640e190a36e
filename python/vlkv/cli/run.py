"""`vlkv run`: a question about pictures, answered on the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from vlkv.cli.console import notes, progress
from vlkv.engine import Engine
from vlkv.generate import Stream
from vlkv.policy import DEFAULT_POLICY
from vlkv.question import MAX_NEW_TOKENS

LONG_PROMPT = 2048


def run(
    engine: Annotated[Path, typer.Argument(show_default=False, help="What vlkv build wrote.")],
    prompt: Annotated[
        str, typer.Option(help="The question; <image> says where a picture goes.", show_default=False)
    ],
    image: Annotated[list[Path] | None, typer.Option(help="A picture; may be given several times.")] = None,
    policy: Annotated[
        str, typer.Option(help="How the cache is compressed; vlkv policies lists them.")
    ] = DEFAULT_POLICY,
    budget: Annotated[
        float | None,
        typer.Option(help="Share of the prompt's cache to keep, in (0, 1].", show_default="0.1, full: 1"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = MAX_NEW_TOKENS,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample from the k likeliest; 0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest of this total probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Repeats a sampled answer.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Ends the answer; may be given several times.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Compare sizes only, not hashes.")] = False,
    threads: Annotated[int, typer.Option(help="Threads of one operator; 0 takes all cores.")] = 0,
    device: Annotated[str, typer.Option(help="Where ONNX Runtime runs: cpu or cuda.")] = "cpu",
    plugin: Annotated[
        Path | None, typer.Option(help="libvlkv_tensorrt.so, for a TensorRT engine built with it.")
    ] = None,
) -> None:
    """Answer a question about pictures."""
    with progress(data=False) as bar:
        bar.step("opening the engine")
        opened = Engine.load(engine, verify=not no_verify, threads=threads, device=device, plugin=plugin)

        def prefilled(done: int, total: int) -> None:
            if total > LONG_PROMPT and done < total:
                bar.step("reading the prompt")
                bar.total(total)
                bar.advance(done)

        bar.step("reading the prompt")
        stream = opened.stream(
            prompt,
            list(image or ()),
            progress=prefilled,
            policy=policy,
            budget=budget,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=tuple(stop or ()),
            raw=raw,
        )
        pieces = iter(stream)
        first = next(pieces, "")
    if json:
        for _ in pieces:
            pass
        sys.stdout.write(msgspec.json.encode(stream.result.to_dict()).decode() + "\n")
        return
    sys.stdout.write(first)
    sys.stdout.flush()
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    notes().print(summary(stream), style="dim", soft_wrap=True)


def summary(stream: Stream) -> str:
    """One line: what was kept and how fast it was."""
    result = stream.result
    spent = result.seconds
    share = result.cache_bytes / result.cache_bytes_full
    before = spent.vision + spent.prefill + spent.compress
    return (
        f"{result.policy}: {sum(result.kept_tokens) // len(result.kept_tokens)} of {result.prompt_tokens} prompt "
        f"tokens a layer, cache {result.cache_bytes / 2**20:.2f} MiB "
        f"({share:.0%} of full), first token after {before:.2f} s, "
        f"{result.tokens_per_second:.0f} tokens/s"
    )
