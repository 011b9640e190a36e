"""lmms-eval and VLMEvalKit ask an engine: their own code on tiny tasks, and what this side checks by itself.

`make harness` installs them and runs these tests; without them those of the programs are skipped.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from eval.harness_tasks import lmms_tasks, vlmevalkit_tasks
from vlkv import Engine, Question
from vlkv.errors import EngineError, EvalError, PolicyError
from vlkv.eval import harness as module
from vlkv.eval.harness import HARNESSES, Score, _call, run_harness
from vlkv.eval.tasks import make_samples
from vlkv_harness import request as theirs
from vlkv_harness.answers import question
from vlkv_harness.vlmevalkit import figures, message

ROOT = Path(__file__).parents[2]
COUNT = 6


def packages(harness: str) -> Path:
    folder = ROOT / ".venv" / "harness" / harness
    if not folder.is_dir():
        pytest.skip(f"no {folder}: `make harness` installs it")
    return folder


def vlkv(harness: str, engine: Path, output: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Runs `vlkv eval --harness` in a process that finds the harness."""
    words = ("eval", engine, "--harness", harness, "--threads", 1, "-o", output, "--json", *words)
    environment = {
        "PYTHONPATH": str(packages(harness)),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(output.parent / "cache"),
    }
    return subprocess.run(
        [sys.executable, "-c", "from vlkv.cli.main import main; main()", *map(str, words)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def answers(engine: Engine, policy: str, budget: float) -> list[str]:
    """What the engine answers to the forms by itself."""
    samples = make_samples("form-qa", COUNT, seed=1)
    asked = [
        Question(one.turns[0].question, one.pictures(), policy=policy, budget=budget, max_new_tokens=8)
        for one in samples
    ]
    return [result.text for result in engine.generate_batch(asked)]


def test_lmms_eval_scores_what_the_engine_answers(reader, tmp_path):
    expected = lmms_tasks(tmp_path / "tasks", COUNT)
    words = (
        "--task",
        "forms_tiny",
        "--data",
        tmp_path / "tasks",
        "--policy",
        "full,streaming-llm",
        "--budget",
        0.1,
    )
    done = vlkv("lmms-eval", reader.directory, tmp_path / "out", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    got = json.loads(done.stdout)
    assert [
        (one["policy"], one["budget"], one["task"], one["metric"], one["samples"]) for one in got["scores"]
    ] == [
        ("full", 1.0, "forms_tiny", "exact_match", COUNT),
        ("streaming-llm", 0.1, "forms_tiny", "exact_match", COUNT),
    ]
    shares = []
    for policy, budget in (("full", 1.0), ("streaming-llm", 0.1)):
        own = answers(reader, policy, budget)
        lines = (tmp_path / "out" / f"forms_tiny-{policy}-{budget:g}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [
            {"target": target, "answers": [text]} for target, text in zip(expected, own, strict=True)
        ]
        shares.append(sum(map(str.__eq__, own, expected)) / COUNT)
    assert [one["value"] for one in got["scores"]] == pytest.approx(shares)
    assert shares[0] > shares[1], "the policy reaches the engine"
    assert "| full | 1 |" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    ("task", "says"), [("no_such", "lmms-eval has no task 'no_such'"), ("forms_rounds", "has several rounds")]
)
def test_lmms_eval_refuses_in_one_line(reader, tmp_path, task, says):
    lmms_tasks(tmp_path / "tasks", 1)
    words = ("--task", task, "--data", tmp_path / "tasks", "--policy", "full", "--budget", 1)
    done = vlkv("lmms-eval", reader.directory, tmp_path / "out", *words)
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("vlkv: ") and says in last


def test_lmms_eval_finds_the_model_by_its_entry_point(reader, tmp_path):
    lmms_tasks(tmp_path / "tasks", 2)
    done = subprocess.run(
        [
            sys.executable, "-m", "lmms_eval", "--model", "vlkv", "--model_args",
            f"engine={reader.directory},policy=vl-cache,budget=0.5,threads=1", "--tasks", "forms_tiny",
            "--include_path", tmp_path / "tasks", "--batch_size", "1",
        ],
        env=os.environ
        | {"PYTHONPATH": str(packages("lmms-eval")), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "forms_tiny" in done.stdout and "exact_match" in done.stdout


def test_vlmevalkit_scores_what_the_engine_answers(reader, tmp_path):
    expected = vlmevalkit_tasks(tmp_path / "data", COUNT)
    settings = ("--policy", "full,streaming-llm", "--budget", 0.1, "--max-new-tokens", 8)
    words = ("--task", "forms_GQA,forms_options", "--data", tmp_path / "data", *settings)
    done = vlkv("vlmevalkit", reader.directory, tmp_path / "out", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    got = json.loads(done.stdout)["scores"]
    assert [(one["policy"], one["task"], one["metric"], one["samples"]) for one in got] == [
        (policy, task, "Overall", COUNT)
        for policy in ("full", "streaming-llm")
        for task in ("forms_GQA", "forms_options")
    ]
    shares = []
    for policy, budget in (("full", 1.0), ("streaming-llm", 0.1)):
        own = answers(reader, policy, budget)
        with (tmp_path / "out" / f"forms_GQA-{policy}-{budget:g}.tsv").open() as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert [(row["answer"], row["prediction"]) for row in rows] == list(zip(expected, own, strict=True))
        shares.append(100 * sum(map(str.__eq__, own, expected)) / COUNT)
    assert [one["value"] for one in got if one["task"] == "forms_GQA"] == pytest.approx(shares)
    assert shares[0] > shares[1], "the policy reaches the engine"


def test_vlmevalkit_refuses_in_one_line(reader, tmp_path):
    words = ("--task", "no_such", "--data", tmp_path, "--policy", "full", "--budget", 1)
    done = vlkv("vlmevalkit", reader.directory, tmp_path / "out", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("vlkv: VLMEvalKit has no data set 'no_such'")


def test_a_message_of_vlmevalkit():
    picture, text = {"type": "image", "value": "a.png"}, {"type": "text", "value": "what?"}
    first = message([picture, text], {"max_new_tokens": 3}, policy="full")
    assert (first.prompt, first.images, first.max_new_tokens, first.policy) == (
        "what?",
        ("a.png",),
        3,
        "full",
    )
    between = message([text, picture, text], {})
    assert (between.prompt, between.images) == ("what?\n<image>\nwhat?", ("a.png",))
    with pytest.raises(EvalError, match="asks about video"):
        message([{"type": "video", "value": "a.mp4"}], {})


def test_the_figures_of_vlmevalkit():
    class Table(list):
        def to_dict(self, kind):
            assert kind == "records"
            return self

    one = {"split": "none", "Overall": 0.5, "empty": float("nan")}
    assert figures(Table([one])) == [("Overall", 0.5)]
    two = Table([{"split": "val", "Overall": 1}, {"split": "test", "Overall": 0}])
    assert figures(two) == [("val Overall", 1.0), ("test Overall", 0.0)]
    assert figures({"Bleu": [0.1, 0.2], "all right": True, "note": "7"}) == [("Bleu 1", 0.1), ("Bleu 2", 0.2)]
    assert figures(None) == []


def test_what_is_wrong_is_said_before_anything_runs(reader, tmp_path, monkeypatch):
    def run(harness="lmms-eval", engine=reader.directory, tasks=("a",), **settings):
        settings = {"policies": ["full"], "budgets": [1.0], "folder": tmp_path} | settings
        return run_harness(harness, engine, tasks, **settings)

    for given, error, says in (
        ({"harness": "other"}, EvalError, "unknown harness 'other'; known: lmms-eval, vlmevalkit"),
        ({"tasks": ()}, EvalError, "needs --task"),
        ({"samples": 0}, EvalError, "0 samples are under 1"),
        ({"data": tmp_path / "none"}, EvalError, "none is not a folder"),
        ({"policies": ["none"]}, PolicyError, "unknown policy"),
        ({"prune": "none"}, PolicyError, "none"),
    ):
        with pytest.raises(error, match=says):
            run(**given)
    for name, known in HARNESSES.items():
        monkeypatch.setattr(module, "find_spec", lambda package: None)
        with pytest.raises(EvalError, match=f"needs the package {known.package}: {known.install}"):
            run(name)
    monkeypatch.setattr(module, "find_spec", lambda package: True)
    with pytest.raises(EngineError):
        run(engine=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_program_that_dies_is_named(tmp_path):
    with pytest.raises(EvalError, match="lmms-eval ended with code 1; its messages are above"):
        _call("lmms-eval", "no_such_program", tmp_path, {})


def test_both_sides_mean_the_same_files():
    assert (theirs.REQUEST, theirs.SCORES) == (module.REQUEST, module.SCORES)
    assert theirs.Score.__struct_fields__ == Score.__struct_fields__
    assert theirs.Scores.__struct_fields__ == module.Answer.__struct_fields__


def test_a_harness_question():
    picture = Image.new("RGB", (4, 4))
    made = question(
        "<image> <image> what?", [picture, "a.MP4"], {"until": "\n", "temperature": 0.7, "do_sample": False}
    )
    assert made.prompt == "  what?", "two places for one picture are left out"
    assert (made.images, len(made.videos), made.stop, made.temperature) == ((picture,), 1, ("\n",), 0.0)
    assert question("<image> a", [picture], {}).prompt == "<image> a"
    assert question("a", [], {"temperature": 0.7, "max_new_tokens": 3}).temperature == 0.7
    with pytest.raises(EvalError, match="5 beams"):
        question("a", [], {"num_beams": 5})
