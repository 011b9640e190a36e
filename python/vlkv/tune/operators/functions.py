"""The level of an operator's source: functions that a candidate may replace, and what its text may hold.

A candidate is one function's text. It takes the function's place in a copy of the file; the rest stays as installed.
What it compiles to may neither keep state nor call what the installed object does not call, memory and mathematics
aside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlkv.errors import TuneError
from vlkv.tune import elf
from vlkv.tune.toolchain import HIDDEN

LEVEL = "functions"
MOST_TEXT = 20_000


@dataclass(frozen=True)
class Function:
    """A function of an operator: its file in the sources, and its name."""

    file: str
    name: str


FUNCTIONS: dict[str, tuple[Function, ...]] = {
    "attend": (
        Function("cpu/attend_kernel.inl", "attend_logits"),
        Function("cpu/attend_kernel.inl", "attend_values"),
        Function("cpu/sums.inl", "sum_each"),
    ),
    "linear": (
        Function("cpu/linear_few.inl", "add_group"),
        Function("cpu/linear_rows.inl", "normalize"),
        Function("cpu/linear_rows.inl", "gate"),
    ),
    "score": (
        Function("cpu/score_kernel.inl", "combine"),
        Function("cpu/score.cpp", "clear"),
        Function("cpu/score_kernel.inl", "add_columns"),
    ),
    "evict": (
        Function("cpu/cache_copy.cpp", "gather"),
        Function("cpu/cache_copy.cpp", "clear"),
        Function("cpu/select.cpp", "select_highest"),
    ),
}
"""Functions in whose loops the time of the timed shapes is spent, and short ones beside them."""
DIRECTIVE = re.compile(r"^\s*(?:#|%:)(?!\s*pragma GCC (?:unroll \d+|ivdep)\s*$)", re.MULTILINE)
WORDS = re.compile(
    r"\b(?:asm|__asm|__asm__|_Pragma|__attribute|__attribute__|extern|namespace|thread_local)\b|\[\["
)
ATTRIBUTE = "__attribute__((noinline)) "
EXTRA = re.compile(
    r"(?:mem(?:cpy|move|set|cmp)|(?:exp2?|sqrt|fma|log2?|fm(?:in|ax)|floor|ceil|rint|fabs)f?|_Zn[aw]m|_Zd[al]Pvm?|"
    r"_ZSt\d+__throw_\w+|_Unwind_Resume|__gxx_personality_v0|_GLOBAL_OFFSET_TABLE_|__stack_chk_fail)"
)
"""What an object may need beyond the installed one's names."""
TEMPLATES = re.compile(r"_ZN?K?S[ta]|_ZSt|DW\.ref\.")


def installed(sources: Path, function: Function) -> str:
    """Returns the function's text as it is in the sources. Raises `TuneError` if it is not there once."""
    begin, end, text = _place(sources, function)
    return text[begin:end]


def fault(text: str, name: str) -> str:
    """Returns why a function's text is refused before it is compiled, or ""."""
    if len(text) > MOST_TEXT or "\0" in text:
        return f"the function has {len(text)} characters; at most {MOST_TEXT}, without NUL"
    found = DIRECTIVE.search(text) or WORDS.search(text.replace(ATTRIBUTE, "")) or HIDDEN.search(text)
    if found:
        line = text[found.start() :].strip().splitlines()[0]
        return f"the function has {line[:40]!r}; allowed are C++ without directives, assembly and attributes"
    if not re.search(rf"\b{name}\s*\(", text):
        return f"the text defines no {name}"
    return ""


def overlay(sources: Path, operator: str, chosen: Mapping[str, str], folder: Path) -> Path:
    """Writes the files with chosen functions in place of the installed ones into a folder, and returns it."""
    made: dict[str, str] = {}
    for function in FUNCTIONS[operator]:
        if function.name in chosen:
            begin, end, text = _place(sources, function, made.get(function.file))
            made[function.file] = f"{text[:begin]}{chosen[function.name].rstrip()}\n{text[end:]}"
    for name, text in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def object_fault(made: bytes, before: bytes) -> str:
    """Returns why an object with a chosen function is refused, or "": state, or names that the installed has not."""
    kept, before_kept = elf.writable(made), elf.writable(before)
    for section, length in kept.items():
        if length > before_kept.get(section, 0):
            what = "it runs code at load" if "array" in section else "it keeps state between calls"
            return f"{what} ({section}, {length} bytes)"
    defined, needed = elf.symbols(made)
    own, known = elf.symbols(before)
    for name in sorted(defined - own):
        if not TEMPLATES.match(name):
            return f"it defines {name}, which the installed operator does not"
    for name in sorted(needed - known - defined):
        if not (EXTRA.fullmatch(name) or TEMPLATES.match(name)):
            return f"it calls {name}, which the installed operator does not"
    return ""


def _place(sources: Path, function: Function, text: str | None = None) -> tuple[int, int, str]:
    text = (sources / function.file).read_text() if text is None else text
    head = rf"^(?:template <[^\n]*>\n)?[A-Za-z][^\n;{{}}#]*\b{function.name}\([^;{{}}]*\{{\n.*?^\}}\n"
    found = list(re.finditer(head, text, re.MULTILINE | re.DOTALL))
    if len(found) != 1:
        raise TuneError(
            f"{function.file} of the installed sources has {len(found)} functions {function.name}"
        )
    return found[0].start(), found[0].end(), text
