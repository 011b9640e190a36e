"""Functions of an operator's source: where they lie, and what a text and its object may hold."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vlkv.errors import TuneError
from vlkv.tune.agents import block_of
from vlkv.tune.endpoint import Reply
from vlkv.tune.operators.agent import FunctionAgent
from vlkv.tune.operators.constants import OPERATORS, Choice, parse
from vlkv.tune.operators.functions import FUNCTIONS, Function, fault, installed, object_fault, overlay
from vlkv.tune.proposal import State
from vlkv.tune.toolchain import Candidate

SOURCES = Path(__file__).parents[3] / "cpp"
EACH = [(operator, function) for operator, functions in FUNCTIONS.items() for function in functions]


@pytest.mark.parametrize(("operator", "function"), EACH)
def test_every_function_is_found_and_put_back_as_it_is(operator: str, function: Function, tmp_path: Path):
    text = installed(SOURCES, function)
    assert text.endswith("\n}\n") and fault(text, function.name) == ""
    folder = overlay(SOURCES, operator, {function.name: text}, tmp_path)
    assert (folder / function.file).read_text() == (SOURCES / function.file).read_text()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("void gather() {}\n#include <cstdio>", "#include"),
        ("void gather() {}\n  %:define x", "%:define"),
        ('void gather() { asm("syscall"); }', "asm"),
        ("__attribute__((constructor)) void gather() {}", "__attribute__"),
        ("[[gnu::constructor]] void gather() {}", "[["),
        ("} namespace other { void gather() {}", "namespace"),
        ('void gather() { if (__SANITIZE_ADDRESS__) {} _Pragma("x") }', "_Pragma"),
        ("void scatter() {}", "defines no gather"),
        ("void gather() {}" + " " * 20_000, "at most 20000"),
    ],
)
def test_what_a_text_may_not_hold(text: str, says: str):
    assert says in fault(text, "gather")
    with pytest.raises(TuneError):
        parse(OPERATORS["evict"], Choice(functions={"gather": text}).text())


def test_pragmas_of_loops_are_allowed():
    assert fault("void f() {\n#pragma GCC unroll 4\n  for (;;) {}\n}\n", "f") == ""


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("int f(int x) { return x + 1; }", ""),
        ("#include <cstring>\nint f(int x) { char b[99]; memset(b, x, 99); return b[x % 99]; }", ""),
        ("int f(int x) { static int calls = 0; return x + ++calls; }", "state between calls"),
        ('extern "C" int system(const char*); int f(int x) { return system("x"); }', "it calls system"),
        ("int f(int x) { return x; } int g(int x) { return x; }", "it defines _Z1gi"),
        (
            "struct A { A(); } a; A::A() {} int f(int x) { return x; }",
            "state between calls|runs code at load",
        ),
    ],
)
def test_what_an_object_may_not_do(text: str, says: str, tmp_path: Path):
    made = []
    for name, source in (("old", "int f(int x) { return x; }"), ("new", text)):
        (tmp_path / f"{name}.cpp").write_text(source)
        subprocess.run(["g++", "-O2", "-fPIC", "-c", f"{name}.cpp"], cwd=tmp_path, check=True)
        made.append((tmp_path / f"{name}.o").read_bytes())
    found = object_fault(made[1], made[0])
    assert any(part in found for part in says.split("|")) if says else not found


def test_an_agent_gives_every_sample_and_takes_functions_in_turn():
    """One call of two samples is two proposals; a fence that the answer's end left open counts."""
    prompts: list[str] = []

    def ask(prompt: str, _: str) -> Reply:
        prompts.append(prompt)
        return Reply("```cpp\nvoid gather() {}\n```\n", 10, 20, 1.0, ("no fence", "```\nvoid clear() {"))

    agent = FunctionAgent(ask, OPERATORS["evict"], SOURCES)
    best = Candidate("constants", '{"VLKV_EVICT_AHEAD": 16}', ())
    state = State(None, best, Path("x"), ("constants", "functions"))  # type: ignore[arg-type]
    first, second, third = agent.propose(state)
    assert len(prompts) == 1 and "void gather(const HeadRows& rows" in prompts[0]
    assert first.candidate and parse(OPERATORS["evict"], first.candidate.text).constants == {
        "VLKV_EVICT_AHEAD": 16
    }
    assert second.candidate is None and second.reason == "the answer has no fenced block"
    assert third.candidate and "void clear() {" in third.candidate.text
    agent.propose(state)
    assert "void clear(const HeadRows& rows" in prompts[1]


def test_blocks():
    assert block_of("a\n```c\nint x;\n```\nb") == "int x;\n"
    assert block_of("```\nint x;") == "int x;"
    assert block_of("int x;") is None
