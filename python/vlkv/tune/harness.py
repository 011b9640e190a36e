"""The harness of a function: a Python file that gives its signature, its inputs, its oracle and its tolerance."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlkv.errors import TuneError
from vlkv.storage.files import reason, show
from vlkv.tune.runner import TYPES

USES = ("in", "out", "inout", "value")
MOST_BYTES = 1 << 28
Sizes = dict[str, int]
Values = dict[str, Any]


@dataclass(frozen=True)
class Argument:
    """One argument of the function: a number ("value"), or a pointer to an array ("in", "out", "inout").

    `dtype` is the name of a NumPy dtype: float32, float64, or an integer of 8 to 64 bits.
    """

    name: str
    dtype: str
    use: str


@dataclass(frozen=True)
class Harness:
    """A loaded harness; docs/tune.md describes the file. Sizes are numbers of elements.

    `inputs(sizes, rng)` returns a value for every argument; arrays of "out" arguments give their size alone.
    `oracle(values)` returns the expected array of each "out" and "inout" argument, and `return` if there is one.
    `tolerance(values)` returns bounds of the absolute error by the same names; what it leaves out must be equal.
    `repeatable`: a second call with what the first left in "inout" arrays gives the same, so that calls can be timed
    together.
    `elsewhere` are sizes at which the best version is timed once at the end, to see whether its gain holds there.
    """

    path: Path
    function: str
    arguments: tuple[Argument, ...]
    returns: str | None
    sizes: dict[str, tuple[int, int]]
    held_out: dict[str, tuple[int, int]]
    timed: tuple[Sizes, ...]
    inputs: Callable[[Sizes, np.random.Generator], Values]
    oracle: Callable[[Values], Values]
    tolerance: Callable[[Values], Values]
    special: tuple[float, ...] = ()
    description: str = ""
    repeatable: bool = False
    elsewhere: tuple[Sizes, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Harness:
        """Runs the file, which is the user's own code, and checks what it defines. Raises `TuneError`."""
        try:
            found = runpy.run_path(str(path))
        except Exception as error:
            raise TuneError(f"{show(path)}: {reason(error)}") from error
        named = "FUNCTION", "ARGUMENTS", "SIZES", "TIMED", "inputs", "oracle"
        for name in named:
            if name not in found:
                raise TuneError(f"{show(path)}: no {name}; a harness defines {', '.join(named)}")
        arguments = tuple(_argument(path, item) for item in found["ARGUMENTS"])
        returns = found.get("RETURNS")
        if returns is not None and returns not in TYPES:
            raise TuneError(f"{show(path)}: RETURNS is {returns!r}; known are None, {', '.join(TYPES)}")
        sizes = {name: _range(path, name, ends) for name, ends in found["SIZES"].items()}
        held = found.get("HELD_OUT") or {name: (high + 1, 2 * high + 1) for name, (_, high) in sizes.items()}
        held = {name: _range(path, name, held.get(name, sizes[name])) for name in sizes}
        timed = tuple(dict(item) for item in found["TIMED"])
        if not timed or any(set(item) != set(sizes) for item in timed):
            raise TuneError(f"{show(path)}: TIMED lists sizes as dicts with the names {', '.join(sizes)}")
        special = tuple(found.get("SPECIAL", ()))
        if not all(isinstance(value, float) for value in special):
            raise TuneError(f"{show(path)}: SPECIAL is {special!r}; it lists floats, such as float('nan')")
        return cls(
            path=path,
            function=found["FUNCTION"],
            arguments=arguments,
            returns=returns,
            sizes=sizes,
            held_out=held,
            timed=timed,
            inputs=found["inputs"],
            oracle=found["oracle"],
            tolerance=found.get("tolerance", lambda _: {}),
            special=special,
            description=(found.get("__doc__") or "").strip(),
            elsewhere=tuple({n: _third(size, sizes[n][0]) for n, size in item.items()} for item in timed),
        )

    def case(self, sizes: Mapping[str, int], rng: np.random.Generator, special: bool = False) -> Values:
        """Returns checked inputs of the given sizes; `special` puts the harness's special values into floats."""
        try:
            given = self.inputs(dict(sizes), rng)
        except Exception as error:
            raise TuneError(f"{show(self.path)}: inputs({dict(sizes)}): {reason(error)}") from error
        made: Values = {}
        for argument in self.arguments:
            if argument.name not in given:
                raise TuneError(f"{show(self.path)}: inputs({dict(sizes)}) gives no {argument.name}")
            value = given[argument.name]
            if argument.use == "value":
                made[argument.name] = float(value) if argument.dtype.startswith("float") else int(value)
                continue
            array = np.ascontiguousarray(value)
            if array.dtype != np.dtype(argument.dtype) or array.nbytes > MOST_BYTES:
                raise TuneError(
                    f"{show(self.path)}: inputs gives {array.nbytes} bytes of {array.dtype} for {argument.name}; "
                    f"it takes at most {MOST_BYTES} bytes of {argument.dtype}"
                )
            if argument.use == "out":  # what is not written does not pass by chance
                array = np.frombuffer(rng.bytes(array.nbytes), array.dtype).reshape(array.shape)
            elif special and argument.dtype.startswith("float") and array.size:
                array = array.copy()
                places = rng.integers(0, array.size, size=1 + array.size // 16)
                array.reshape(-1)[places] = rng.choice(np.array(self.special), size=places.size)
            made[argument.name] = array
        return made

    def wrong(self, values: Values, results: Mapping[str, Any]) -> str | None:
        """Compares results with the oracle; returns the first difference in words, or None."""
        try:
            with np.errstate(all="ignore"):
                copies = {n: v.copy() if isinstance(v, np.ndarray) else v for n, v in values.items()}
                expected, bounds = self.oracle(copies), self.tolerance(copies)
        except Exception as error:
            raise TuneError(f"{show(self.path)}: the oracle fails: {reason(error)}") from error
        for name, result in results.items():
            if name not in expected:
                raise TuneError(f"{show(self.path)}: the oracle gives no {name}")
            got = np.asarray(result)
            wanted = np.asarray(expected[name])
            if got.size != wanted.size:
                raise TuneError(
                    f"{show(self.path)}: the oracle gives {wanted.size} elements of {name}, inputs gave {got.size}"
                )
            text = _difference(got.reshape(-1), wanted.reshape(-1), bounds.get(name, 0.0))
            if text:
                return f"{name}{text}"
        return None

    def prototype(self) -> str:
        """Returns the function's prototype in C."""
        parts = []
        for a in self.arguments:
            kind = c_type(a.dtype)
            star = "" if a.use == "value" else "*"
            parts.append(f"{'const ' if a.use == 'in' else ''}{kind} {star}{a.name}")
        return f"{c_type(self.returns) if self.returns else 'void'} {self.function}({', '.join(parts) or 'void'});"


def c_type(dtype: str) -> str:
    """Returns C's name of a dtype."""
    return {"float32": "float", "float64": "double"}.get(dtype, f"{dtype}_t")


def draw(harness: Harness, rng: np.random.Generator, count: int = 28) -> list[Sizes]:
    """Draws sizes: the least, all small ones, odd ones, neighbours of powers of two, and random ones to the largest."""
    drawn: list[Sizes] = [{name: low for name, (low, _) in harness.sizes.items()}]
    for small in range(18):
        drawn.append({n: min(max(small, low), high) for n, (low, high) in harness.sizes.items()})
    return drawn + draw_random(harness, rng, count - len(drawn))


def draw_random(harness: Harness, rng: np.random.Generator, count: int) -> list[Sizes]:
    """Draws sizes: each is near a power of two, or odd and from a range whose logarithm is uniform."""
    drawn = []
    for _ in range(count):
        made = {}
        for name, (low, high) in harness.sizes.items():
            near = (1 << int(rng.integers(0, max(high, 1).bit_length() + 1))) + int(rng.integers(-1, 2))
            free = int(math.exp(rng.uniform(math.log(low + 1), math.log(high + 1)))) - 1
            made[name] = min(max(near if rng.random() < 0.5 else free | 1, low), high)
        drawn.append(made)
    return drawn


def draw_held_out(harness: Harness, rng: np.random.Generator, count: int = 8) -> list[Sizes]:
    """Draws sizes from the ranges that no proposer is told of, and the timed sizes."""
    drawn = [
        {name: int(rng.integers(low, high + 1)) for name, (low, high) in harness.held_out.items()}
        for _ in range(count)
    ]
    return drawn + [dict(item) for item in harness.timed]


def _difference(got: np.ndarray, wanted: np.ndarray, bound: Any) -> str:
    if wanted.dtype.kind in "iub" and got.dtype.kind in "iub" and not np.any(bound):
        bad = got.astype(object) != wanted.astype(object) if wanted.dtype == np.uint64 else got != wanted
    else:
        with np.errstate(all="ignore"):
            got64, wanted64 = got.astype(np.float64), wanted.astype(np.float64)
            near = np.abs(got64 - wanted64) <= np.broadcast_to(
                np.asarray(bound, np.float64).reshape(-1), got64.shape
            )
        bad = ~(near | (got64 == wanted64) | (np.isnan(got64) & np.isnan(wanted64)))
    where = np.flatnonzero(np.asarray(bad, dtype=bool))
    if not where.size:
        return ""
    at = int(where[0])
    return f"[{at}] is {got[at]!s}, the oracle says {wanted[at]!s} ({where.size} of {got.size} differ)"


def _third(size: int, low: int) -> int:
    """An odd third of a size, at least the least; sizes of one or two stay, as they may be flags."""
    return size if size < 3 else max(size // 3 | 1, low)


def _argument(path: Path, item: Any) -> Argument:
    try:
        argument = Argument(*item)
    except TypeError:
        raise TuneError(f"{show(path)}: ARGUMENTS has {item!r}; each is (name, dtype, use)") from None
    if argument.dtype not in TYPES or argument.use not in USES:
        raise TuneError(
            f"{show(path)}: argument {item!r}; dtypes are {', '.join(TYPES)}; uses are {', '.join(USES)}"
        )
    return argument


def _range(path: Path, name: str, ends: Any) -> tuple[int, int]:
    try:
        low, high = (int(end) for end in ends)
    except (TypeError, ValueError):
        raise TuneError(f"{show(path)}: the range of {name} is {ends!r}; it is (least, largest)") from None
    if not 0 <= low <= high:
        raise TuneError(f"{show(path)}: the range of {name} is ({low}, {high}); 0 <= least <= largest")
    return low, high
