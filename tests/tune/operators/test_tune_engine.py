"""`vlkv tune ENGINE`: sources with one slow and one wrong constant show what is admitted, and how it is taken back."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tune.proposers import Listed
from vlkv import Engine
from vlkv.errors import EngineError, TuneError
from vlkv.ops import tuned
from vlkv.tune.api import Budget
from vlkv.tune.operators import engine as engines
from vlkv.tune.operators import library
from vlkv.tune.operators.constants import OPERATORS, Choice
from vlkv.tune.operators.engine import switch_off, tune_engine
from vlkv.tune.operators.functions import FUNCTIONS, installed
from vlkv.tune.operators.search import ConstantSearch

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("g++") or platform.machine() != "x86_64",
    reason="needs g++ and Linux on x86-64",
)
SHAPE = "llama-old"
SLOW, WRONG, FAST = "{}", '{"VLKV_EVICT_AHEAD": 32}', '{"VLKV_EVICT_PIECE": 512}'
ASKED = {"prompt": "what is this", "policy": "vl-cache", "budget": 0.5, "max_new_tokens": 4}
BEGIN = "void run_cpu(const EvictParams& p) {\n"
NARROW = "if (size_of(rows.dtype) == 2) rows.to[i * rows.to_stride] = 1;"
"""A write past the end for rows of two bytes an element, which the harness of a float32 engine does not have."""
CHANGES = (
    ("slots[i + run] == slots[i] + run", "slots[i + run] >= slots[i] + run"),  # wrong: gaps are copied too
    ("const size_t bytes", "static size_t calls = 0; calls += 1; const size_t bytes"),  # keeps state
    ("int64_t run = 1;", "int64_t run = 1;;"),  # the same machine code
    ("i += run;", f"i += run; {NARROW}"),  # only its fuzz target sees it
)
CHANGED = """
#if VLKV_EVICT_PIECE == 256
  for (volatile int i = 0; i < 400000; i = i + 1) {}
#endif
"""


def functions(sources: Path, change: tuple[str, str]) -> str:
    """The installed gather with a change, as a candidate of level functions beside the fast constant."""
    gather = next(one for one in FUNCTIONS["evict"] if one.name == "gather")
    text = installed(sources, gather)
    assert change[0] in text
    replaced = {"gather": text.replace(*change)}
    return Choice({"VLKV_EVICT_PIECE": 512}, (), replaced).text()


@pytest.fixture(scope="module")
def run(built_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory):
    """An engine, and the folder of its tuning with sources in which evict is slow as installed.

    The compiler, which takes most of the time, optimises little; libraries with sanitizers, which run evict alone,
    have no kernels of other operators.
    """
    base = tmp_path_factory.mktemp("tune")
    sources = shutil.copytree(tuned.sources_folder(), base / "cpp")
    evict = sources / "cpu" / "evict.cpp"
    assert BEGIN in evict.read_text()
    evict.write_text(evict.read_text().replace(BEGIN, BEGIN + CHANGED))
    copy = sources / "cpu" / "cache_copy.cpp"
    wrong = "slots[i] * rows.from_stride,"
    assert wrong in copy.read_text()
    copy.write_text(copy.read_text().replace(wrong, wrong.replace("]", "] * (kAhead == 32 ? 0 : 1)")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned, "sources_folder", lambda: sources)
        patch.setattr(library, "sources_folder", lambda: sources)
        patch.setattr(engines, "HARNESSES", {"evict": engines.HARNESSES["evict"]})
        patch.setattr(library, "WORDS", ("-O1", *(word for word in library.WORDS if word != "-O3")))
        patch.setattr(library, "SANITIZED", (*library.SANITIZED, "-O0", "-UVLKV_PARTS", "-DVLKV_PARTS=0"))
        tuned.sources_hash.cache_clear()
        engine = built_of(SHAPE)
        texts = [SLOW, WRONG, "{", FAST, *(functions(sources, change) for change in CHANGES)]
        report = tune_engine(engine, base / "out", lambda *_: [Listed(texts)], Budget(len(texts), fuzz=0.01))
        yield engine, base / "out", report
    tuned.sources_hash.cache_clear()


def test_a_wrong_choice_is_refused_and_a_faster_one_admitted(run):
    _, out, report = run
    lines = (out / "evict" / "ledger.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines[1:]]
    assert [r.get("gate") for r in found[:4]] == ["time", "inputs", "compile", None]
    assert "oracle says" in found[1]["reason"] and "no JSON object" in found[2]["reason"]
    only = report.functions[0]
    assert (only.calls, only.candidates, only.correct, only.admitted) == (8, 8, 3, 1)
    assert only.low > 1 and only.best_flags == ["-DVLKV_EVICT_PIECE=512"]
    record = json.loads((out / "tuned.json").read_text())
    assert record["libraries"][0]["operators"]["evict"]["choice"] == {"VLKV_EVICT_PIECE": 512, "flags": []}
    assert (out / record["libraries"][0]["file"]).stat().st_size > 100_000


def test_a_wrong_function_of_the_source_is_refused(run):
    """It is compiled into the library and judged as a choice is; the same machine code is not judged twice."""
    _, out, report = run
    lines = (out / "evict" / "ledger.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines[5:]]
    gates = [r.get("gate") for r in found]
    assert gates == ["inputs", "compile", "time", "fuzz"]
    assert "state between calls" in found[1]["reason"] and "earlier candidate" in found[2]["reason"]
    assert "vlkv_fuzz_evict" in found[3]["reason"] and "heap-buffer-overflow" in found[3]["reason"]
    assert report.functions[0].by_level["functions"]["candidates"] == 4


def test_an_engine_answers_the_same_with_the_library(run, engine_of):
    engine, out, _ = run
    with Engine.load(engine, threads=1, tuned=out) as opened:
        assert opened.model.backend.tuned is not None
        got = opened.generate(**ASKED)
    assert got.token_ids == engine_of(SHAPE).generate(**ASKED).token_ids


def changed(out: Path, target: Path, **fields: object) -> Path:
    shutil.copytree(out, target)
    record = tuned.read(target)
    one = {n: v for n, v in fields.items() if n in ("processor", "sources")}
    whole = {n: v for n, v in fields.items() if n not in one}
    libraries = tuple(msgspec.structs.replace(library, **one) for library in record.libraries)
    record = msgspec.structs.replace(record, libraries=libraries, **whole)
    (target / tuned.NAME).write_bytes(msgspec.json.encode(record))
    return target


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"processor": "another"}, "was tuned on another"),
        ({"sources": "0" * 64}, "another version of vlkv"),
        ({"engine": "0" * 64}, "another engine"),
        ({"off": True}, "is off"),
    ],
)
def test_what_does_not_fit_is_not_loaded(run, tmp_path: Path, fields: dict, why: str):
    engine, out, _ = run
    folder = changed(out, tmp_path / "other", **fields)
    found, text = tuned.choose(folder, engine)
    assert found is None and why in text
    with Engine.load(engine, threads=1, tuned=folder) as opened:
        assert opened.model.backend.tuned is None


def test_a_changed_library_is_refused(run, tmp_path: Path):
    engine, out, _ = run
    folder = shutil.copytree(out, tmp_path / "other")
    path = folder / tuned.read(folder).libraries[0].file
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(EngineError, match="is not the file that"):
        Engine.load(engine, threads=1, tuned=folder)
    path.unlink()
    with pytest.raises(EngineError, match=path.name):
        Engine.load(engine, threads=1, tuned=folder)


def test_off_and_deletion_take_it_back(run, tmp_path: Path, vlkv):
    engine, out, _ = run
    folder = shutil.copytree(out, tmp_path / "other")
    assert vlkv("tune", engine, "--off", "-o", folder)[0] == 0
    assert tuned.choose(folder, engine) == (None, f"{folder} is off")
    shutil.rmtree(folder)
    code, _, err = vlkv("bench", engine, "--tuned", folder)
    assert code == 2 and "tuned.json" in err and err.count("\n") == 1
    with pytest.raises(EngineError, match=r"tuned\.json"):
        switch_off(folder)


def test_bench_runs_both(run, vlkv):
    engine, out, _ = run
    options = ("--prompt-tokens", 120, "--budget", 1, "--new-tokens", 4, "--repeat", 1, "--json")
    code, text, err = vlkv("bench", engine, "--tuned", out, *options)
    assert code == 0, err
    assert "tuned" in text


def test_what_can_not_be_tuned_is_one_line(built_of, tmp_path: Path, vlkv):
    code, _, err = vlkv("tune", built_of(SHAPE, "functions"), "--calls", 1, "-o", tmp_path / "out")
    assert code == 2 and "no native CPU operators" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_search_draws_nothing_twice_and_learns():
    pytest.importorskip("optuna")
    operator = OPERATORS["evict"]
    search = ConstantSearch(operator)
    text = '{"VLKV_EVICT_AHEAD": 16, "flags": []}'
    search.remember({"choice": text, "ratio": {"value": 0.5}, "relative": 0.5, "admitted": True})
    with pytest.raises(TuneError):
        search.remember({"choice": "{}}"})

    class State:
        relative = 1.0

    texts = [search.propose(State())[0].candidate.text for _ in range(12)]
    assert len(set(texts)) == 12 and all(json.loads(t) != json.loads(text) for t in texts)
