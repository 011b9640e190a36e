"""What `make quality` measured for weight formats, prompt precisions and KV cache dtypes, for `vlkv build` to print.

The figures are in `quality.json`, which `make quality` writes. Each is of one real language model against float32.
"""

from __future__ import annotations

from importlib.resources import files

import msgspec

from vlkv.storage.manifest import default_precision

FLOAT = "float32"


class Row(msgspec.Struct, frozen=True):
    """One engine's figures over `tokens` forced tokens, and the limits that they should keep.

    `agreement` is the share of first choices that are float32's (`least` at the least), and `change` the relative
    change of perplexity (`most` at the most, up or down).
    """

    weights: str
    precision: str
    cache: str
    tokens: int
    agreement: float
    least: float
    change: float
    most: float

    @property
    def options(self) -> str:
        """The options of `vlkv build` that differ from float32, and a precision that is not the weights' default."""
        named = {
            "weights": (self.weights, FLOAT),
            "prompt-precision": (self.precision, default_precision(self.weights)),
            "kv-dtype": (self.cache, FLOAT),
        }
        return " ".join(f"--{name} {value}" for name, (value, default) in named.items() if value != default)

    @property
    def within(self) -> bool:
        """Whether both figures are within their limits."""
        return self.agreement >= self.least and abs(self.change) <= self.most


class Figures(msgspec.Struct, frozen=True):
    """The file: the language model, the day and the processor of the measurement, and the rows."""

    model: str
    date: str
    processor: str
    rows: tuple[Row, ...]


def figures() -> Figures:
    """Reads the file."""
    return msgspec.json.decode(files("vlkv_export").joinpath("quality.json").read_bytes(), type=Figures)


def lines(weights: str | None, precision: str | None, cache: str | None) -> list[str]:
    """What is known of these options, one line a measurement; nothing for options that were not measured.

    A measurement of all options together comes alone. Else each option has a line of its own.
    """
    found = figures()
    options = weights or FLOAT, precision or default_precision(weights), cache or FLOAT
    by_options = {(row.weights, row.precision, row.cache): row for row in found.rows}
    rows = [by_options.get(options)]
    if rows == [None]:
        weights, precision, cache = options
        parts = [(weights, precision, FLOAT), (FLOAT, FLOAT, cache)]
        if parts[0] not in by_options:
            parts[:1] = [(weights, default_precision(weights), FLOAT), (FLOAT, precision, FLOAT)]
        rows = [by_options.get(part) for part in parts]
    return [_line(row, found) for row in rows if row is not None]


def _line(row: Row, found: Figures) -> str:
    missed = "" if row.within else f"; the limits of {row.least:.1%} and {row.most:.1%} are missed"
    return (
        f"{row.options}: first choices equal to float32's {row.agreement:.2%}, perplexity {row.change:+.2%} "
        f"({found.model}, {row.tokens:,} tokens, {found.date}){missed}"
    )
