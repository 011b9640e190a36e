"""`vlkv policies`: the fields of the built-in policies as a table, and what each protects."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Annotated, Any

import typer
from rich.table import Table

from vlkv.cli.console import answers, write_json
from vlkv.policies.auto import SHORT_TEXT
from vlkv.policies.builtin import DEFAULT_POLICY, POLICIES
from vlkv.policies.policy import Policy
from vlkv.policies.recall import Recall


def policies(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """List the policies and their fields."""
    if json:
        write_json({name: asdict(policy) for name, policy in POLICIES.items()})
        return
    names = [field.name for field in fields(Policy) if field.name != "name"]
    table = Table(box=None, pad_edge=False)
    table.add_column("field", no_wrap=True)
    for name in POLICIES:
        table.add_column(name, no_wrap=True)
    for field in names:
        table.add_row(field, *(shown(getattr(policy, field)) for policy in POLICIES.values()))
    console = answers()
    # a pipe has no width: use the table's
    console.width = max(
        console.width, console.measure(table, options=console.options.update(width=1000)).maximum
    )
    console.print(table)
    console.print(
        "\nauto takes one by the prompt: picture-once for a conversation about a picture, vl-cache for a text of at "
        f"most {SHORT_TEXT} tokens, {DEFAULT_POLICY} for all else.",
        soft_wrap=True,
        highlight=False,
    )
    console.print("\nStays whatever its score:")
    for name, policy in POLICIES.items():
        console.print(f"  {name}: {policy.protected}", soft_wrap=True, highlight=False)


def shown(value: Any) -> str:
    """A field's value as a short text; a `Recall` as its share and the tokens of a page."""
    if isinstance(value, Recall):
        return f"{value.share:g}/{value.page}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
