"""Texts repeat by seed, are long enough, and each setting's comparison with the full cache equals `Engine.forced`."""

from __future__ import annotations

import json
from dataclasses import replace
from math import exp, log

import numpy as np
import pytest

from vlkv.errors import EvalError
from vlkv.eval.records import Answers, Record
from vlkv.eval.runner import Run
from vlkv.eval.settings import make_settings
from vlkv.eval.text_report import summarize_texts, text_markdown, write_text_report
from vlkv.eval.text_runner import compared, evaluate_texts
from vlkv.eval.texts import KINDS, MAX_SAMPLES, Text, make_texts
from vlkv.generation.question import Question

BODY = "what is the city? what is the rank? what is the lot? what is the tax?\n" * 3
TEXTS = [Text(0, "prose", 20, BODY, None), Text(1, "chat", 0, "", "what is the date?")]
RUN = Run("text seed 0 given 5", 5)


def test_texts_are_deterministic_and_of_every_kind():
    texts = make_texts(MAX_SAMPLES, seed=3)
    assert texts == make_texts(MAX_SAMPLES, seed=3) != make_texts(MAX_SAMPLES, seed=4)
    assert [text.number for text in texts] == list(range(MAX_SAMPLES * len(KINDS)))
    for kind in KINDS:
        own = [(text.body, text.asked) for text in texts if text.kind == kind]
        assert len(set(own)) == MAX_SAMPLES
    assert all(len(text.body) >= 3 * text.tokens for text in texts)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0,), "0 texts of each kind are outside 1 to 24"),
        ((25,), "25 texts"),
        ((1, -1), "seed -1 is outside"),
    ],
)
def test_refusals(arguments, says):
    with pytest.raises(EvalError, match=says):
        make_texts(*arguments)


def test_what_is_compared():
    rng = np.random.default_rng()
    logits = rng.normal(size=(4, 11)).astype(np.float32) * 3
    logits[3] = logits[0]
    loss, agreed, divergence = compared(logits, 6)
    for row in range(3):
        p, q = (np.exp(np.float64(logits[index])) for index in (0, row + 1))
        p, q = p / p.sum(), q / q.sum()
        assert loss[row] == pytest.approx(-log(q[6]))
        assert agreed[row] == (p.argmax() == q.argmax())
        assert divergence[row] == pytest.approx(
            sum(a * log(a / b) for a, b in zip(p, q, strict=True)), abs=1e-12
        )


def test_records_equal_forced_and_are_not_made_twice(reader, tmp_path):
    settings = make_settings(["full", "vl-cache", "h2o"], [0.5, 0.2])
    with Answers(tmp_path) as known:
        records = evaluate_texts(reader, RUN, TEXTS, settings, known)
        again = evaluate_texts(reader, RUN, TEXTS, settings, known)
    assert records == again and len(records) == len(TEXTS) * len(settings)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == len(records)
    ids = reader.prompt(Question(BODY, raw=True)).token_ids.tolist()
    asked = {0: Question(reader.decode(ids[:20]), raw=True), 1: Question("what is the date?")}
    given = {0: ids[20:25]}
    given[1] = list(reader.generate("what is the date?", policy="full", max_new_tokens=5).token_ids)
    for record in records:
        tokens = given[record.sample]
        steps = {}
        for policy, budget in (("full", None), (record.policy, record.budget)):
            question = replace(asked[record.sample], policy=policy, budget=budget)
            forced = reader.forced(question, tokens[:-1])
            steps[policy] = [step.logits for step in forced]
            kept = forced.result.kept_tokens
        sums = sum(
            compared(np.stack(pair), t)
            for *pair, t in zip(steps["full"], steps[record.policy], tokens, strict=True)
        )
        assert record.tokens == len(tokens) and record.kept == kept
        found = [record.loss, record.agreed, record.divergence]
        np.testing.assert_allclose(found, sums[:, 0], rtol=1e-4, atol=1e-4)
        assert record.kind == TEXTS[record.sample].kind
    full = [record for record in records if record.policy == "full"]
    assert all(record.agreed == record.tokens and record.divergence == 0 for record in full)


def test_a_text_too_short_is_named(reader):
    with pytest.raises(EvalError, match=r"text 7 \(code\) has \d+ tokens of this model, 3005 are needed"):
        evaluate_texts(
            reader, RUN, [Text(7, "code", 3000, BODY, None)], make_settings(["full"], [1]), Answers(None)
        )


def record(policy, sample, loss, agreed, divergence, kind="prose"):
    return Record(
        run="r", engine="e", policy=policy, digest=policy, budget=1.0 if policy == "full" else 0.2, keep="",
        sample=sample, questions=[], expected=[], answers=[], exact=False, similarity=0.0, loss=loss, agreed=agreed,
        tokens=10, kept=[2, 4], prompt_tokens=10, kind=kind, divergence=divergence,
    )  # fmt: skip


def test_lines_and_files(tmp_path):
    records = [record("full", 0, 10, 10, 0), record("full", 1, 30, 10, 0)]
    records += [record("h2o", 0, 12, 8, 1), record("h2o", 1, 36, 6, 3), record("h2o", 2, 9, 9, 0, "code")]
    full, h2o, code = summarize_texts(records)
    assert (full.perplexity, full.ratio.value, full.divergence.value) == (pytest.approx(exp(2)), 1.0, 0.0)
    assert (h2o.perplexity, h2o.kept) == (pytest.approx(exp(2.4)), pytest.approx(0.3))
    assert h2o.ratio.value == pytest.approx(exp(0.4)) and h2o.ratio.low < h2o.ratio.value < h2o.ratio.high
    assert (h2o.agreement.value, h2o.divergence.value) == (pytest.approx(0.7), pytest.approx(0.2))
    assert (code.kind, code.texts, code.ratio) == ("code", 1, None)
    text = text_markdown([full, h2o, code], "title")
    assert "## prose: 2 texts, 20 tokens" in text and "| h2o | 11, 70% |" in text
    assert [path.name for path in write_text_report(tmp_path, "title", [full, h2o])] == [
        "table.md",
        "summary.json",
    ]
    assert len(json.loads((tmp_path / "summary.json").read_text())["lines"]) == 2


@pytest.mark.parametrize(
    "option", [["--turns", "2"], ["--ablation"], ["--question", "{key}"], ["--data", "x"]]
)
def test_options_that_do_not_go_with_it(vlkv, shipped, option):
    code, _, said = vlkv("eval", shipped, "--task", "text", *option)
    assert code == 2 and "task text takes no" in said
