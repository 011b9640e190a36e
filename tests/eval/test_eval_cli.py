"""`vlkv eval` and `vlkv inspect` on the command line: their output, their files, and their one-line errors."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from vlkv.eval import forms


@pytest.fixture
def picture(tmp_path):
    forms.draw(forms.held_out_form(900_000)).save(tmp_path / "form.png")
    return tmp_path / "form.png"


def test_eval_prints_and_writes(vlkv, shipped, tmp_path):
    out = tmp_path / "out"
    asked = ["eval", shipped, "--policy", "full, vl-cache,elastic", "--budget", "0.2,0.05", "--samples", 4]
    asked += ["-o", out, "--threads", 1]
    code, text, _ = vlkv(*asked)
    assert code == 0
    assert text.count("vl-cache") == text.count("elastic") == 2 and "perplexity" in text
    assert {path.name for path in out.iterdir()} == {"answers.jsonl", "table.md", "summary.json", "chart.png"}
    with Image.open(out / "chart.png") as chart:
        assert chart.size[0] > 1000
        chart.load()
    records = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert len(records) == 4 * 5
    code, text, _ = vlkv(*asked, "--json")
    printed = json.loads(text)
    assert printed == json.loads((out / "summary.json").read_text())
    line = printed["lines"][2]
    right = [
        record["exact"] for record in records if record["policy"] == "vl-cache" and record["budget"] == 0.05
    ]
    assert line["exact"]["value"] == sum(right) / len(right)
    assert len((out / "answers.jsonl").read_text().splitlines()) == 20
    assert "| elastic |" in (out / "table.md").read_text()


def test_eval_of_a_folder_and_two_turns(vlkv, shipped, picture, tmp_path):
    ask, answer = forms.one_question(forms.held_out_form(900_000))
    (tmp_path / "lines.jsonl").write_text(
        json.dumps({"image": "form.png", "question": [ask, ask], "answer": [answer, "no"]}) + "\n"
    )
    common = ["--task", "folder", "--data", tmp_path, "--budget", "0.2", "--json", "--threads", 1]
    code, text, _ = vlkv("eval", shipped, *common)
    lines = json.loads(text)["lines"]
    assert code == 0 and [line["exact"]["value"] for line in lines] == [1.0, 1.0]
    code, text, _ = vlkv("eval", shipped, *common, "--turns", 2)
    lines = json.loads(text)["lines"]
    assert code == 0 and [line["label"] for line in lines] == [
        "full, compressed",
        "shared-question, compressed",
        "shared-question, reusable",
    ]
    assert [line["exact"]["value"] for line in lines] == [0.0] * 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--task", "forms"], "unknown task 'forms'; known: form-qa"),
        (["--policy", "vl-cash"], "unknown policy 'vl-cash'; known: full, vl-cache"),
        (["--policy", ","], "no policy is given"),
        (["--budget", ""], "no budget is given"),
        (["--budget", "0.5,x"], "budget 'x' is not a number"),
        (["--budget", "0.5,1.5"], "budget 1.5 is outside (0, 1]"),
        (["--budget", "nan"], "budget nan is outside (0, 1]"),
        (["--samples", "0"], "0 samples are outside"),
        (["--seed", "-1"], "seed -1 is outside"),
        (["--turns", "3"], "3 turns are outside"),
        (["--batch", "0"], "batch 0 is under 1"),
        (["--max-new-tokens", "0"], "max-new-tokens 0 is under 1"),
        (["--ablation", "--turns", "2"], "--ablation needs a task with one question"),
        (["--task", "folder"], "task folder needs --data"),
        (["--task", "folder", "--data", "none"], "none does not exist"),
        (["--task", "two-forms", "--samples", "1"], "the model has 1024 positions"),
        (["-o", "form.png", "--samples", "1"], "form.png"),
    ],
)
def test_eval_refuses_in_one_line(vlkv, shipped, picture, monkeypatch, arguments, says):
    monkeypatch.chdir(picture.parent)
    code, out, err = vlkv("eval", shipped, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("vlkv: ") and says in err


def test_an_engine_that_is_none_leaves_nothing(vlkv, tmp_path):
    code, _, err = vlkv("eval", tmp_path, "-o", tmp_path / "out")
    assert code == 2 and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_inspect_prints_and_writes(vlkv, shipped, picture, tmp_path):
    ask, answer = forms.one_question(forms.held_out_form(900_000))
    code, text, _ = vlkv(
        "inspect", shipped, "--image", picture, "--prompt", ask, "-o", tmp_path / "out", "--threads", 1
    )
    assert code == 0 and text.count(answer) == 2
    assert (tmp_path / "out" / "index.html").stat().st_size > 10_000
    seen = ["--image", picture]
    for shown, wrong, says in (
        (seen, ["--policy", "none"], "unknown policy"),
        (seen, ["--budget", "0"], "outside (0, 1]"),
        (["--image", "no.png"], [], "no.png"),
        (seen, ["-o", picture], "form.png"),
        (seen, ["--policy", "full", "--budget", "0.5"], "keeps everything"),
    ):  # fmt: skip
        given = ["inspect", shipped, *shown, "--prompt", ask, "-o", tmp_path / "other", *wrong]
        code, out, err = vlkv(*given)
        assert (code, err.count("\n")) == (2, 1), err
        assert says in err and out == "" and not (tmp_path / "other").exists()


def test_eval_and_inspect_of_pruned_prompts(vlkv, shipped, picture, tmp_path):
    asked = ["eval", shipped, "--policy", "full,vl-cache", "--budget", "0.2", "--samples", 2, "--threads", 1]
    asked += ["-o", tmp_path / "out", "--json"]
    code, text, _ = vlkv(*asked, "--prune", "duplicates")
    report = json.loads(text)
    assert code == 0 and report["run"].endswith("pruned by duplicates")
    assert [line["kept"] < limit for line, limit in zip(report["lines"], (0.2, 0.21), strict=True)] == [
        True
    ] * 2
    code, text, _ = vlkv(*asked)  # another run in the same folder
    assert code == 0 and json.loads(text)["lines"][0]["kept"] == 1.0
    assert len((tmp_path / "out" / "answers.jsonl").read_text().splitlines()) == 8
    look = ["inspect", shipped, "--image", picture, "--prompt", "what is the key?", "-o", tmp_path / "page"]
    code, _, _ = vlkv(*look, "--prune", "blank", "--threads", 1)
    assert code == 0 and (tmp_path / "page" / "index.html").exists()


def test_run_says_what_was_pruned(vlkv, shipped, picture):
    asked = ["run", shipped, "--image", picture, "--prompt", "what is the key?", "--threads", 1]
    asked += ["--prune", "duplicates", "--policy", "vl-cache", "--budget", 0.1]
    code, text, _ = vlkv(*asked, "--json")
    result = json.loads(text)
    assert code == 0 and 0 < result["pruned_tokens"] < result["image_tokens"]
    code, _, notes = vlkv(*asked)
    assert code == 0 and f"{result['pruned_tokens']} left out before prefill" in notes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "--prune", "x"], "unknown prune 'x'; known: duplicates, blank, diverse:SHARE"),
        (["eval", "--prune", "diverse:2"], "prune diverse:2 is outside (0, 1]"),
        (["eval", "--prune", "blank", "--ablation"], "leave out --prune"),
        (["eval", "--prune", "blank", "--task", "text"], "task text takes no"),
        (["run", "--prompt", "a", "--prune", ""], "unknown prune ''"),
        (["inspect", "--prompt", "a", "-o", "out", "--prune", "x"], "unknown prune 'x'"),
    ],
)
def test_wrong_prune(vlkv, shipped, arguments, message):
    code, text, notes = vlkv(arguments[0], shipped, *arguments[1:])
    assert (code, text) == (2, "")
    assert message in notes and len(notes.strip().splitlines()) == 1


def test_eval_inspect_and_run_with_recall(vlkv, shipped, picture, tmp_path):
    asked = ["eval", shipped, "--policy", "full,snapkv", "--budget", "0.2", "--samples", 2, "--threads", 1]
    code, text, _ = vlkv(*asked, "--recall", 0.1, "-o", tmp_path / "out", "--json")
    full, small = json.loads(text)["lines"]
    assert code == 0 and (full["policy"], small["policy"]) == ("full", "snapkv+recall 0.1")
    assert full["read"] is None and 0.2 < small["read"] < 0.3 and small["kept"] <= 0.21
    assert "| read |" in (tmp_path / "out" / "table.md").read_text()
    code, text, _ = vlkv(*asked, "--turns", 2, "--recall", 0.1, "--json")
    assert code == 0 and {line["keep"] for line in json.loads(text)["lines"]} == {"compressed", "reusable"}
    own = ["--image", picture, "--prompt", "what is the key?", "--recall", 0.1, "--threads", 1]
    code, _, _ = vlkv("inspect", shipped, *own, "-o", tmp_path / "page")
    assert code == 0 and (tmp_path / "page" / "index.html").exists()
    code, text, _ = vlkv("run", shipped, *own, "--json")
    result = json.loads(text)
    assert code == 0 and result["recall_bytes"] > 0 and result["recall_bytes_read"] > 0
    code, _, notes = vlkv("run", shipped, *own)
    assert code == 0 and f"and {result['recall_bytes'] / 2**20:.2f} MiB of evicted tokens" in notes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "--policy", "full,h2o", "--recall", "0.1"], "policy 'h2o' evicts while decoding"),
        (["eval", "--policy", "snapkv", "--recall", "2"], "recall 2.0 is outside (0, 1]"),
        (["eval", "--recall", "0.1", "--ablation"], "leave out --recall"),
        (["eval", "--recall", "0.1", "--task", "text"], "task text takes no"),
        (["run", "--prompt", "a", "--recall", "0"], "recall 0.0 is outside (0, 1]"),
        (["run", "--prompt", "a", "--recall", "0.1", "--policy", "elastic"], "policy 'elastic' merges"),
        (["inspect", "--prompt", "a", "-o", "out", "--recall", "0.1", "--policy", "full"], "evicts nothing"),
    ],
)
def test_wrong_recall(vlkv, shipped, arguments, message):
    code, text, notes = vlkv(arguments[0], shipped, *arguments[1:])
    assert (code, text) == (2, "")
    assert message in notes and len(notes.strip().splitlines()) == 1
