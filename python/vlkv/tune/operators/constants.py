"""What may be chosen for each native operator: the constants of cpp/cpu/constants.h, and flags of its kernels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlkv.errors import TuneError
from vlkv.tune.operators.functions import FUNCTIONS, fault

FLAGS: dict[str, tuple[str, ...]] = {
    "tune": ("-mtune=native", "-march=native"),
    "level": ("-O2",),
    "unroll": ("-funroll-loops",),
    "schedule": ("-fno-schedule-insns2", "-fschedule-insns -fsched-pressure"),
    "induction": ("-fno-ivopts",),
    "vectorise": ("-fno-tree-vectorize", "-fvect-cost-model=unlimited"),
    "align": ("-falign-loops=32", "-falign-loops=64"),
    "redundancy": ("-fno-gcse", "-fno-tree-pre"),
    "split": ("-fno-split-loops -fno-unswitch-loops",),
    "if-conversion": ("-fno-if-conversion -fno-if-conversion2",),
}
"""Groups of flags, of which a choice takes at most one each. None changes what is computed for NaN or infinities."""


@dataclass(frozen=True)
class Operator:
    """One operator: allowed values of its constants (the default first), its kernels' part, and its other files.

    `flags` are groups of compiler flags, as in FLAGS.
    """

    name: str
    constants: Mapping[str, tuple[int, ...]]
    part: int = 0
    files: tuple[str, ...] = ()
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: FLAGS)


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator(
            "attend",
            {
                "VLKV_ATTEND_KEYS": (64, 32, 128),
                "VLKV_ATTEND_AHEAD": (12288, 0, 2048, 4096, 8192, 16384, 24576),
                "VLKV_ATTEND_PART_SLOTS": (1024, 256, 512, 2048, 4096),
                "VLKV_ATTEND_BLOCK_QUERIES": (192, 48, 96, 384),
                "VLKV_ATTEND_BLOCK_KEYS": (96, 64, 128, 192),
            },
            2,
            ("cpu/attend.cpp", "cpu/attend_many.cpp"),
        ),
        Operator(
            "linear",
            {
                "VLKV_LINEAR_AHEAD": (8192, 0, 2048, 4096, 12288, 16384),
                "VLKV_LINEAR_PART_KIB": (32, 16, 64, 128, 256),
                "VLKV_LINEAR_FEW_COLUMNS": (24, 8, 16, 48),
                "VLKV_LINEAR_COLUMNS_AT_ONCE": (8, 4),
                "VLKV_LINEAR_ROW_COLUMNS_AT_ONCE": (1, 2, 4, 8),
            },
            4,
            ("cpu/linear.cpp",),
        ),
        Operator(
            "score",
            {"VLKV_SCORE_TILE_KEYS": (96, 48, 144, 192), "VLKV_SCORE_MOST_ROWS": (64, 32, 128)},
            1,
            ("cpu/score.cpp", "cpu/score_blocks.cpp", "cpu/score_rows.cpp"),
        ),
        Operator(
            "evict",
            {"VLKV_EVICT_PIECE": (256, 64, 128, 512, 1024), "VLKV_EVICT_AHEAD": (8, 2, 4, 16, 32)},
            0,
            ("cpu/evict.cpp", "cpu/cache_copy.cpp", "cpu/select.cpp"),
        ),
    )
}


@dataclass(frozen=True)
class Choice:
    """Constants that differ from the default, flags, and the text of functions that take the installed ones' place."""

    constants: Mapping[str, int] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    functions: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """Returns the choice as JSON, in a fixed order."""
        values: dict[str, Any] = dict(sorted(self.constants.items()))
        values |= {"functions": dict(sorted(self.functions.items()))} if self.functions else {}
        return json.dumps(values | {"flags": sorted(self.flags)}, indent=1) + "\n"

    @property
    def arguments(self) -> list[str]:
        """The compiler's arguments."""
        words = [word for flag in self.flags for word in flag.split()]
        return [*(f"-D{name}={value}" for name, value in sorted(self.constants.items())), *words]


def parse(operator: Operator, text: str) -> Choice:
    """Reads a choice from JSON, such as {"VLKV_EVICT_AHEAD": 16, "flags": ["-funroll-loops"]}.

    Raises `TuneError`, which names the value and what is allowed, for any other text.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise TuneError("the answer is no JSON object") from None
    if not isinstance(values, dict):
        raise TuneError("the answer is no JSON object")
    flags = values.pop("flags", [])
    if not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
        raise TuneError("flags is no list of texts")
    replaced = _functions(operator, values.pop("functions", {}))
    for name, value in values.items():
        allowed = operator.constants.get(name)
        if allowed is None:
            raise TuneError(f"{operator.name} has no {name!a:.60}; known: {', '.join(operator.constants)}")
        if type(value) is not int or value not in allowed:
            raise TuneError(f"{name} is {value!a:.40}; allowed are {', '.join(map(str, sorted(allowed)))}")
    for group, options in operator.flags.items():
        if sum(flag in options for flag in flags) > 1:
            raise TuneError(f"flags has two of {group}: {', '.join(options)}")
    known = [flag for options in operator.flags.values() for flag in options]
    for flag in flags:
        if flag not in known:
            raise TuneError(f"flags has {flag!a:.60}; allowed are {', '.join(known) or 'none'}")
    constants = {n: v for n, v in values.items() if v != operator.constants[n][0]}
    return Choice(constants, tuple(sorted(flags)), replaced)


def _functions(operator: Operator, found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise TuneError("functions is no object of texts")
    known = [function.name for function in FUNCTIONS.get(operator.name, ())]
    for name, text in found.items():
        if name not in known:
            raise TuneError(f"{operator.name} has no function {name!a:.60}; known: {', '.join(known)}")
        why = fault(text, name)
        if why:
            raise TuneError(why)
    return found
