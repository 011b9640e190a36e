"""`vlkv load`: a load test of a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from vlkv.cli.console import answers, progress, write_json
from vlkv.errors import ImageError, VlkvError
from vlkv.storage.files import reason

DEFAULT_PROMPT = "What is in the picture?"


def load(
    url: Annotated[str, typer.Argument(show_default=False, help="As http://127.0.0.1:8000.")],
    requests: Annotated[int, typer.Option(min=1, help="How many.")] = 500,
    concurrency: Annotated[int, typer.Option(min=1, help="At once (closed loop).")] = 16,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second at random moments (open loop).", min=1e-3)
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture for each request, by turns.")] = None,
    policy: Annotated[str | None, typer.Option(help="How the cache is compressed.")] = None,
    budget: Annotated[float | None, typer.Option(help="Share of the cache to keep.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 64,
    model: Annotated[str, typer.Option(help="The model's name.")] = "vlkv",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Test a running server under load."""
    try:
        from vlkv.serving.load import Load, run_load
        from vlkv.serving.triton.client import encode_image
    except ImportError as error:
        raise VlkvError(f"vlkv load needs the packages of vlkv[serve]: {error}") from None
    prompts, pictures = prompt or [DEFAULT_PROMPT], image or []
    bodies: list[dict[str, Any]] = []
    for number in range(max(len(prompts), len(pictures))):
        body: dict[str, Any] = {"prompt": prompts[number % len(prompts)], "max_tokens": max_tokens}
        if pictures:
            path = pictures[number % len(pictures)]
            try:
                body["images"] = [encode_image(path.read_bytes())]
            except OSError as error:
                raise ImageError(f"{path}: {reason(error)}") from None
        given = {"policy": policy, "budget": budget}
        bodies.append(body | {name: value for name, value in given.items() if value is not None})
    with progress(data=False) as bar:
        bar.step("asking")
        bar.total(requests)
        report, _ = run_load(url, Load(requests, concurrency, bodies, rate), model, lambda _: bar.advance(1))
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
    out.print(
        f"{report.answered} of {report.requests} answered in {report.seconds:.1f} s, {loop}: "
        f"{report.requests_per_second:.2f} requests/s, {report.tokens_per_second:.1f} tokens/s"
    )
    for text, count in report.errors.items():
        out.print(f"{count} x {text}", soft_wrap=True)
