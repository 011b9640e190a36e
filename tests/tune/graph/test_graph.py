"""`vlkv tune ENGINE --graphs GRAPHS`: what is admitted is right, recorded, and can be built again."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tune.proposers import Listed
from vlkv.cli.main import main
from vlkv.errors import TuneError
from vlkv.storage.files import hash_file
from vlkv.tune.api import Budget
from vlkv.tune.graph import api
from vlkv.tune.graph.api import tune_graph
from vlkv.tune.graph.builder import GraphBuilder, options_of
from vlkv.tune.graph.choices import PASSES, passes_of
from vlkv.tune.graph.judge import GraphJudge
from vlkv.tune.operators.constants import Choice, parse
from vlkv.tune.ratio import Ratio

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="vlkv tune needs Linux")
SHAPE = "llama-old"
PLAIN, WRONG, SAME, BAD = '{"native_attention": 0}', '{"fused_linear": 0}', '{"order": 1}', '{"order": 9}'


class Builder(GraphBuilder):
    """Its engines without `fused_linear` have caches in int8, and so other answers."""

    def engine(self, words):
        wrong = "--passes" in words and words[-1] and "fused_linear" not in words[-1]
        return super().engine([*words, "--kv-dtype", "int8"] if wrong else words)


@pytest.fixture(scope="module")
def run(built_of: Callable[..., Path], graphs_of: Callable[..., Path], tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "GraphBuilder", Builder)
        patch.setattr(GraphJudge, "compare", lambda *_: Ratio(0.8, 0.7, 0.9))
        report = tune_graph(
            built_of(SHAPE), graphs_of(SHAPE), out, [Listed((PLAIN, WRONG, SAME, BAD))], Budget(calls=4)
        )
    return out, report


def test_only_right_engines_are_admitted(run):
    out, report = run
    found = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()[1:]]
    assert [record.get("gate") for record in found] == [None, "inputs", "time", "compile"]
    assert "differ from the plain graph's" in found[1]["reason"]
    assert "earlier candidate" in found[2]["reason"] and "order is 9" in found[3]["reason"]
    only = report.functions[0]
    assert (only.calls, only.correct, only.admitted, only.speedup) == (4, 2, 1, 1.25)


def test_the_engine_is_built_again_by_its_record(run, tmp_path: Path):
    out, _ = run
    record = json.loads((out / "graph.json").read_text())
    assert record["passes"] == ["multi_head_attention", "fused_linear", "transposed_weights"]
    _, *words = shlex.split(record["build"])
    words[words.index("-o") + 1] = str(tmp_path / "again")
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code
    for graph in ("decoder.onnx", "vision.onnx"):
        assert hash_file(tmp_path / "again" / graph) == hash_file(out / "engine" / graph)
    assert sorted(path.name for path in out.iterdir()) == [
        *("candidates", "engine", "graph.json", "ledger.jsonl", "report.json"),
    ]


def test_choices_name_passes_in_their_order():
    assert passes_of(Choice()) == tuple(PASSES.constants)[:-1]
    some = parse(PASSES, '{"multi_head_attention": 0, "fused_linear": 0, "order": 5}')
    assert passes_of(some) == ("transposed_weights", "native_attention")
    with pytest.raises(TuneError, match="allowed are none"):
        parse(PASSES, '{"flags": ["-O2"]}')


def test_an_engines_options(built_of: Callable[..., Path]):
    assert options_of(built_of(SHAPE)) == []
    assert options_of(built_of(SHAPE, "native", "int8")) == ["--weights", "int8"]
    with pytest.raises(TuneError, match="no passes to choose"):
        options_of(built_of(SHAPE, "functions"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--passes", "fused_linear,fused_linear"], "fused_linear twice"),
        (["--passes", "luck"], "'luck'"),
        (["--passes", "fused_linear", "--dtype", "float16"], "is for CPUs"),
    ],
)
def test_passes_of_a_build_are_checked(
    graphs_of: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list, says: str
):
    with pytest.raises(SystemExit) as ended:
        main(["build", str(graphs_of(SHAPE)), "-o", str(tmp_path / "e"), *words])
    assert ended.value.code == 2 and says in capsys.readouterr().err


def test_the_search_chooses_passes(
    built_of: Callable[..., Path], graphs_of: Callable[..., Path], tmp_path: Path, capsys
):
    pytest.importorskip("optuna")
    words = ["tune", built_of(SHAPE), "--graphs", graphs_of(SHAPE), "--calls", 1, "-o", tmp_path / "out"]
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words), "--json"])
    out = capsys.readouterr()
    assert not ended.value.code, out.err
    report = json.loads(out.out)
    assert (report["calls"], report["candidates"], report["correct"]) == (1, 1, 1)
    assert json.loads((tmp_path / "out" / "graph.json").read_text())["report"]["calls"] == 1
