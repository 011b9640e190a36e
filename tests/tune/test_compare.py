"""`vlkv tune --compare`, `--transcripts` and `--transfer`: equal calls in every way, and a version on this machine."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from vlkv.tune.compare import row
from vlkv.tune.proposal import State
from vlkv.tune.report import FunctionReport
from vlkv.tune.search import Search
from vlkv.tune.toolchain import Candidate, levels

EXAMPLES = Path(__file__).parents[2] / "examples" / "tune"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("gcc") or platform.machine() != "x86_64",
    reason="needs gcc and Linux on x86-64",
)
CALLS = 3


def test_every_way_spends_the_same_calls(tmp_path: Path, vlkv):
    """The recorded agents of `examples/tune/transcripts`, which are written by hand."""
    base = ("--source", EXAMPLES / "argmax.c", "-o", tmp_path, "--json", "--fuzz-seconds", 0)
    recorded = ("--transcripts", EXAMPLES / "transcripts")
    code, text, err = vlkv("tune", *base, *recorded, "--compare", "--calls", CALLS)
    assert code == 0, err
    rows = {one["way"]: one for one in json.loads(text)["ways"]}
    assert list(rows) == ["compiler", *levels(), "naive", "cooperative"]
    assert all(one["calls"] == CALLS for way, one in rows.items() if way != "compiler")
    assert rows["compiler"]["geometric_mean"] == 1 and rows["compiler"]["compile_seconds"] > 0
    spent = {
        way: {level: found["calls"] for level, found in one["by_level"].items()} for way, one in rows.items()
    }
    assert spent["source"] == spent["naive"] == {"source": 2, "tester": 1}
    assert spent["assembly"] == {"assembly": 2, "tester": 1}
    assert spent["cooperative"] == {"source": 1, "guide": 1, "tester": 1}
    assert rows["source"]["correct"] == 1 and rows["source"]["candidates"] == 2
    assert json.loads((tmp_path / "comparison.json").read_text()) == list(rows.values())


def test_the_best_version_is_carried_to_this_machine(tmp_path: Path, vlkv):
    made = ("--source", EXAMPLES / "saxpy.c", "--json", "--fuzz-seconds", 0)
    code, _, err = vlkv("tune", *made, "-o", tmp_path, "--calls", 1)
    assert code == 0, err
    code, text, err = vlkv("tune", *made, "--transfer", tmp_path)
    assert code == 0, err
    found = json.loads(text)["functions"][0]
    assert found["name"] == "saxpy" and found["speedup"] > 0 and "gate" not in found
    best = json.loads((tmp_path / "best.json").read_text())["best"]
    path = tmp_path / best["text"]
    path.write_text(path.read_text().replace("+", "-"))
    code, text, err = vlkv("tune", *made, "--transfer", tmp_path)
    assert code == 0, err
    found = json.loads(text)["functions"][0]
    assert (found["gate"], found["speedup"]) == ("inputs", 1.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--transfer", "nowhere"], "best.json"),
        (["--transcripts", "nowhere", "--calls", "1"], "has no dot.jsonl"),
        (["--graphs", "nowhere", "--calls", "1"], "--graphs goes with an ENGINE"),
        (["--fuzz-seconds", "-1", "--calls", "1"], "--fuzz-seconds is -1"),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, vlkv, arguments: list[str], says: str):
    code, _, err = vlkv("tune", "--source", EXAMPLES / "dot.c", "-o", tmp_path / "out", *arguments)
    assert code == 2 and says in err and "Traceback" not in err


def test_a_function_without_a_faster_version_counts_as_1():
    slow, fast = FunctionReport("a"), FunctionReport("b", speedup=4.0, low=3.0, elsewhere=(2.0, 1.5, 2.5))
    found = row("source", [slow, fast])
    assert (found["geometric_mean"], found["best"], found["faster"]) == (2.0, 4.0, 1)
    assert found["elsewhere"] == pytest.approx(np.sqrt(2.0))


class Lowering:
    """A toolchain whose lower level is a copy of the source."""

    def build(self, candidate):
        raise NotImplementedError

    def lower(self, candidate, level):
        return f"{level} of {candidate.text}"


def test_a_lower_level_begins_with_the_fastest_source():
    first, faster = Candidate("source", "one"), Candidate("source", "two")
    state = State(Lowering(), first, Path("x"), ("source", "assembly"))
    state.at["source"] = first, 1.0
    assert state.start("assembly").text == "assembly of one"
    own = Candidate("assembly", "mine")
    state.at["assembly"] = own, 0.7
    state.at["source"] = faster, 0.8
    assert state.start("assembly") is own
    state.at["source"] = faster, 0.5
    assert state.start("assembly").text == "assembly of two"


def test_the_search_prefers_levels_that_were_admitted():
    rng = np.random.default_rng(0)
    search, named = Search(), ("source", "assembly")
    for admitted in (False,) * 30:
        search.remember({"level": "source", "admitted": admitted})
        search.remember({"level": "assembly", "admitted": True})
    drawn = [search._level(named, rng) for _ in range(200)]
    assert drawn.count("assembly") > 150
    assert [Search(turns=named)._level(named, rng), Search(turns=("ir",))._level(named, rng)] == [
        "source",
        "ir",
    ]
