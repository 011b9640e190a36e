"""`vlkv load`: a load test of a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from vlkv.cli.console import answers, progress, write_json
from vlkv.cli.paths import path
from vlkv.errors import ImageError, VlkvError
from vlkv.storage.files import reason

DEFAULT_PROMPT = "What is in the picture?"


def load(
    url: Annotated[
        str,
        typer.Argument(
            show_default=False,
            help="Such as http://127.0.0.1:8000 (Triton), or ending in /v1 (OpenAI's API).",
        ),
    ],
    requests: Annotated[int, typer.Option(min=1, help="Number of requests.")] = 500,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once (closed loop).")] = 16,
    rate: Annotated[
        float | None, typer.Option(help="Requests per second at random times (open loop).", min=1e-3)
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Prompt; repeatable, used in turn.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="Picture; repeatable, used in turn.", parser=path)
    ] = None,
    policy: Annotated[str | None, typer.Option(help="How the cache is compressed.")] = None,
    budget: Annotated[float | None, typer.Option(help="Share of the cache to keep.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 64,
    model: Annotated[
        str | None, typer.Option(help="The model's name.", show_default="vlkv; llava with OpenAI's API")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="A recorded load, one JSON line per request; see docs/serving.md.", parser=path),
    ] = None,
    api_key: Annotated[str, typer.Option(help="API key for OpenAI's API.")] = "x",
    most_ttft: Annotated[
        float | None, typer.Option(help="Most seconds to the first token of a good answer.", min=1e-3)
    ] = None,
    most_tpot: Annotated[
        float | None, typer.Option(help="Most seconds per later token of a good answer.", min=1e-6)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Test a running server under load."""
    try:
        from vlkv.serving.load import Load, is_openai, run_load
        from vlkv.serving.openai.client import body_of
        from vlkv.serving.trace import read_trace
        from vlkv.serving.triton.client import encode_image
    except ImportError as error:
        raise VlkvError(f"vlkv load needs the packages of vlkv[serve]: {error}") from None
    by_openai = is_openai(url)
    name = model or ("llava" if by_openai else "vlkv")
    own = {"policy": policy, "budget": budget}

    def body(text: str, picture: bytes | None, tokens: int) -> dict[str, Any]:
        if by_openai:
            return body_of(text, [] if picture is None else [picture], tokens, name, **own)
        made: dict[str, Any] = {"prompt": text, "max_tokens": tokens}
        if picture is not None:
            made["images"] = [encode_image(picture)]
        return made | {field: value for field, value in own.items() if value is not None}

    moments = None
    if trace is None:
        prompts, pictures = prompt or [DEFAULT_PROMPT], [_read(path) for path in image or []]
        bodies = [
            body(prompts[n % len(prompts)], pictures[n % len(pictures)] if pictures else None, max_tokens)
            for n in range(max(len(prompts), len(pictures)))
        ]
    else:
        lines = read_trace(trace)
        requests, moments = len(lines), [line.at - lines[0].at for line in lines]
        bodies = [body(line.prompt(), line.picture(), line.max_tokens) for line in lines]
    asked = Load(
        requests, concurrency, bodies, rate, moments=moments, most_ttft=most_ttft, most_tpot=most_tpot
    )
    with progress(data=False) as bar:
        bar.step("asking")
        bar.total(requests)
        report, _ = run_load(url, asked, name, lambda _: bar.advance(1), api_key)
    if not report.answered:
        errors = "; ".join(report.errors)
        raise VlkvError(f"{url}: none of {requests} requests was answered: {errors:.300}")
    if json:
        write_json(report.to_dict())
        return
    table = Table("", "p50", "p90", "p95", "p99")
    for name, values in (
        ("first text", report.ttft),
        ("a token after it", report.tpot),
        ("whole", report.whole),
    ):
        table.add_row(name, *(f"{value * 1e3:.1f} ms" for value in values.values()))
    out = answers()
    out.print(table)
    loop = f"{concurrency} at once" if rate is None else f"{rate:g} a second"
    loop = loop if trace is None else f"as {trace.name} has them"
    out.print(
        f"{report.answered} of {report.requests} answered in {report.seconds:.1f} s, {loop}: "
        f"{report.requests_per_second:.2f} requests/s, {report.tokens_per_second:.1f} tokens/s"
    )
    if report.goodput is not None:
        out.print(f"{report.goodput:.2f} good answers/s")
    for text, count in report.errors.items():
        out.print(f"{count} x {text}", soft_wrap=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {reason(error)}") from None
