"""`vlkv tune --proposers search`: the ledger, resuming, the report, and errors."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from vlkv.errors import TuneError
from vlkv.tune.harness import Harness, draw, draw_held_out
from vlkv.tune.proposal import State
from vlkv.tune.search import CHOICES, Search, aligned
from vlkv.tune.toolchain import Built, Candidate

EXAMPLES = Path(__file__).parents[2] / "examples" / "tune"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("gcc") or platform.machine() != "x86_64",
    reason="needs gcc and Linux on x86-64",
)


def test_a_run_resumes_and_reports(tmp_path: Path, vlkv):
    source = EXAMPLES / "dot.c"
    base = ("--source", source, "-o", tmp_path / "out", "--json")
    code, _, err = vlkv("tune", *base, "--calls", 3)
    assert code == 0, err
    ledger = tmp_path / "out" / "ledger.jsonl"
    first = ledger.read_text()
    ledger.write_text(first + '{"call": 3, "pro')  # as an interruption leaves it
    code, text, err = vlkv("tune", *base, "--calls", 5)
    assert code == 0, err
    assert ledger.read_text().startswith(first)
    records = [json.loads(line) for line in ledger.read_text().splitlines()[1:]]
    assert [record["call"] for record in records] == [0, 1, 2, 3, 4]
    report = json.loads(text)
    assert report["calls"] == 5 and report["correct"] == sum(record["correct"] for record in records)
    assert report["geometric_mean"] == pytest.approx(report["functions"][0]["speedup"])
    best = json.loads((tmp_path / "out" / "best.json").read_text())
    assert (tmp_path / "out" / "best.so").exists() and (tmp_path / "out" / best["best"]["text"]).exists()
    other = (*base[:1], EXAMPLES / "saxpy.c", *base[2:])
    code, _, err = vlkv("tune", *other, "--calls", 1)
    assert code == 2 and "of another run" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none", "--calls", "1"], "no such directory"),
        ([], "--source"),
        (["--source", "none.c", "--calls", "1"], "no file"),
        (["--source", EXAMPLES / "dot.c"], "--calls N or --minutes M"),
        (["--source", EXAMPLES / "dot.c", "--calls", "0"], "at least 1"),
        (["--source", EXAMPLES / "dot.c", "--calls", "1", "--proposers", "luck"], "'luck'"),
        (["--source", EXAMPLES / "dot.c", "--harness", "no.py", "--calls", "1"], "no such harness"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, vlkv, arguments: list, says: str):
    code, _, err = vlkv("tune", *arguments, "-o", tmp_path / "out")
    assert code == 2 and says in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_source_that_fails_its_own_harness_is_an_error(tmp_path: Path, vlkv):
    (tmp_path / "dot.c").write_text((EXAMPLES / "dot.c").read_text().replace("+=", "-="))
    shutil.copy(EXAMPLES / "dot.py", tmp_path)
    code, _, err = vlkv("tune", "--source", tmp_path / "dot.c", "--calls", 1, "-o", tmp_path / "out")
    assert code == 2 and "its own harness" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("FUNCTION =", "F =", "no FUNCTION"),
        ('"float32", "in"', '"real", "in"', "dtypes are"),
        ("(0, 3000)", "(5, 3)", "least"),
        ('"float64"', '"double"', "RETURNS is 'double'"),
        ('{"n": 20000}', '{"m": 20000}', "TIMED"),
        ("import numpy as np", "import nothing_of_that_name", "nothing_of_that_name"),
    ],
)
def test_bad_harnesses_are_refused(tmp_path: Path, old: str, new: str, says: str):
    text = (EXAMPLES / "dot.py").read_text()
    assert old in text
    (tmp_path / "h.py").write_text(text.replace(old, new))
    with pytest.raises(TuneError, match=says):
        Harness.load(tmp_path / "h.py")


def test_held_out_sizes_are_apart(rng: np.random.Generator):
    harness = Harness.load(EXAMPLES / "saxpy.py")
    shown = [sizes["n"] for sizes in draw(harness, rng)]
    assert {0, 1, 2, 3, 17} <= set(shown) and max(shown) <= 3000
    held = [sizes["n"] for sizes in draw_held_out(harness, rng)]
    assert min(held) > 3000 and 20000 in held


def test_alignments_change_nothing_else(rng: np.random.Generator):
    text = ".L1:\n\tnop\n.L2:\n\tret\n"
    changed = aligned(text, rng)
    assert changed != text
    assert "".join(line + "\n" for line in changed.splitlines() if "p2align" not in line) == text


def test_choices_begin_with_the_baseline():
    assert [options[0] for options in CHOICES[1:]] == [()] * (len(CHOICES) - 1)


def test_a_resumed_search_draws_nothing_twice(rng: np.random.Generator):
    search = Search()
    genes = [0] * len(CHOICES)
    genes[2] = 2
    search.remember({"level": "source", "genes": genes, "admitted": True})
    drawn = {tuple(search._draw(rng)) for _ in range(50)}
    assert len(drawn) == 50 and tuple(genes) not in drawn
    assert sum(genes[2] == 2 for genes in drawn) > 25, "most are children of the admitted one"


def test_each_function_gets_draws_of_its_own():
    """The same ones when a run is repeated, and others than another function's."""
    source = Candidate("source", "int f(void) { return 0; }")

    def drawn(function: str, seed: int = 0) -> list[list[int]]:
        search = Search(seed, turns=("source",), function=function)
        state = State(Unbuilt(), source, Path("x"), ("source",))
        state.at["source"] = source, 1.0
        made = []
        for state.calls in range(4):
            made.append(search.propose(state)[0].record["genes"])
        return made

    assert drawn("dot") == drawn("dot")
    assert drawn("dot") != drawn("saxpy") and drawn("dot") != drawn("dot", 1)


class Unbuilt:
    """A toolchain that is not asked."""

    def build(self, candidate: Candidate) -> Built:
        raise NotImplementedError

    def lower(self, candidate: Candidate, level: str) -> str:
        raise NotImplementedError
