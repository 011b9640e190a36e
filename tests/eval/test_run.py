"""Runs give the right numbers, continue after an interruption, ask nothing twice, and can show a failure."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from vlkv import POLICIES, Question
from vlkv.errors import EvalError
from vlkv.eval.ablation import ablation_settings, parts
from vlkv.eval.records import NAME, Answers
from vlkv.eval.runner import Run, evaluate
from vlkv.eval.settings import make_settings
from vlkv.eval.summary import summarize
from vlkv.eval.tasks import make_samples

SETTINGS = make_settings(["full", "vl-cache", "streaming-llm"], [0.2, 0.05])
RUN = Run("form-qa test", 8)


def test_the_shipped_checkpoint_and_its_control(reader, control):
    samples = make_samples("form-qa", 12, seed=3)
    with Answers(None) as answers:
        lines = summarize(evaluate(reader, RUN, samples, SETTINGS, answers))
    assert [(line.policy, line.budget) for line in lines] == [
        ("full", 1.0), ("vl-cache", 0.2), ("vl-cache", 0.05), ("streaming-llm", 0.2), ("streaming-llm", 0.05)
    ]  # fmt: skip
    full, good, _, _, poor = lines
    assert full.exact.value >= 11 / 12 and full.agreement.value == 1.0 and full.kept == 1.0
    assert good.exact.value >= 10 / 12 and good.kept == pytest.approx(0.2, abs=1e-3)
    assert poor.exact.value < good.exact.value and poor.perplexity > 1.5 * good.perplexity
    with Answers(None) as answers:
        lines = summarize(evaluate(control, RUN, samples, SETTINGS, answers))
    assert all(line.exact.value == 0.0 and line.exact.high < 0.3 for line in lines)


def test_records_hold_what_the_engine_answers(reader):
    samples = make_samples("form-qa", 3, seed=4)
    with Answers(None) as answers:
        records = evaluate(reader, RUN, samples, SETTINGS, answers)
    for sample in samples:
        asked = Question(sample.turns[0].question, sample.pictures(), policy="full", max_new_tokens=8)
        tokens = reader.generate_batch([asked])[0].token_ids
        for setting, record in zip(SETTINGS, records[sample.number * len(SETTINGS) :], strict=False):
            own = replace(asked, policy=setting.policy, budget=setting.budget)
            result = reader.generate_batch([own])[0]
            assert record.answers == [result.text] and record.expected == [sample.turns[0].answer]
            assert record.exact == (result.text == record.expected[0])
            assert record.kept == result.kept_tokens and record.tokens == len(tokens)
            loss = agreed = 0.0
            for token, step in zip(tokens, reader.forced(own, tokens[:-1]), strict=True):
                odds = np.exp(step.logits.astype(np.float64) - step.logits.max())
                loss -= math.log(odds[token] / odds.sum())
                agreed += step.logits.argmax() == token
            assert record.agreed == agreed
            # logits of a batch differ by float32 sums: 1e-4 of a logit, times the tokens
            assert record.loss == pytest.approx(loss, abs=1e-3)


@pytest.fixture
def asked(reader, monkeypatch):
    """Records which settings are answered, and can interrupt after some."""
    seen, original = [], type(reader).read
    limit = [math.inf]

    def read(self, question):
        if len(seen) >= limit[0]:
            raise KeyboardInterrupt
        seen.append(question)
        return original(self, question)

    monkeypatch.setattr(type(reader), "read", read)
    return seen, limit


def test_an_interrupted_run_goes_on(reader, asked, tmp_path):
    seen, limit = asked
    samples = make_samples("form-qa", 6, seed=5)
    with Answers(None) as answers:
        want = evaluate(reader, RUN, samples, SETTINGS, answers)
    seen.clear()
    limit[0] = 4
    with pytest.raises(KeyboardInterrupt), Answers(tmp_path / "out") as answers:
        evaluate(reader, RUN, samples, SETTINGS, answers)
    path = tmp_path / "out" / NAME
    whole = path.read_bytes()
    assert whole.count(b"\n") == 4 * len(SETTINGS)
    path.write_bytes(whole[:-30])
    seen.clear()
    limit[0] = math.inf
    with Answers(tmp_path / "out") as answers:
        assert len(answers) == 4 * len(SETTINGS) - 1
        assert evaluate(reader, RUN, samples, SETTINGS, answers) == want
    assert len(seen) == 3
    assert path.read_bytes().count(b"\n") == 6 * len(SETTINGS)
    seen.clear()
    with Answers(tmp_path / "out") as answers:
        assert evaluate(reader, RUN, samples, SETTINGS, answers) == want
    assert not seen


def test_answers_of_other_runs_and_engines_are_none_of_this(reader, control, asked, tmp_path):
    seen, _ = asked
    samples = make_samples("form-qa", 1, seed=5)
    other = [replace(setting, policy=replace(setting.policy, floor=0.02)) for setting in SETTINGS]
    for engine, run, settings in (
        (reader, RUN, SETTINGS), (reader, replace(RUN, name="other"), SETTINGS),
        (control, RUN, SETTINGS), (reader, RUN, other),
    ):  # fmt: skip
        with Answers(tmp_path) as answers:
            evaluate(engine, run, samples, settings, answers)
    assert len(seen) == 4


def test_a_malformed_answer_gives_its_number(tmp_path):
    (tmp_path / NAME).write_text('{"run": 1}\n')
    with pytest.raises(EvalError, match=r"answers\.jsonl line 1: "), Answers(tmp_path):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(EvalError, match="file"), Answers(tmp_path / "file"):
        pass


def test_second_questions_from_what_was_kept_and_exactly(reader):
    samples = make_samples("second-question", 3, seed=6)
    settings = make_settings(["full", "vl-cache"], [0.1], turns=2)
    assert [setting.label for setting in settings] == [
        "full, compressed", "vl-cache, compressed", "vl-cache, reusable"
    ]  # fmt: skip
    with Answers(None) as answers:
        records = evaluate(reader, RUN, samples, settings, answers)
    for sample in samples:
        chat = reader.chat("vl-cache", 0.1, "reusable")
        for turn, picture in zip(sample.turns, (sample.pictures(), ()), strict=True):
            last = chat.ask(turn.question, picture, max_new_tokens=8)
        record = next(r for r in records if r.sample == sample.number and r.keep == "reusable")
        assert record.answers[-1] == last.text and len(record.answers) == 2
        assert record.similarity == pytest.approx(record.similarity) and record.tokens == 0


def test_ablation_tells_its_parts_apart(reader):
    samples = make_samples("form-qa", 2, seed=7)
    run = replace(RUN, hits=True)
    with Answers(None) as answers:
        lines = summarize(evaluate(reader, run, samples, ablation_settings([0.1]), answers))
    tables = [part.lines(lines) for part in parts()]
    assert [len(table) for table in tables] == [4, 5, 2, len(POLICIES)]
    crossed = [table.kept for table in tables[0]]
    assert crossed == pytest.approx([0.1] * 4, abs=2e-3)
    equal, spread = tables[0][1], tables[0][3]
    assert max(equal.layers) - min(equal.layers) <= 1 and max(spread.layers) > 2 * min(spread.layers)
    assert len({line.layers for line in tables[1]}) == 5
    exact, paper = tables[2]
    assert exact.kept == pytest.approx(0.1, abs=1e-3)
    assert paper.layers != exact.layers or paper.kept == exact.kept
    hits = {line.policy: line for line in tables[3]}
    assert hits["full"].hit == hits["full"].mass == 1.0
    assert hits["vl-cache"].hit > hits["streaming-llm"].hit > 0
    assert json.dumps([line.to_dict() for line in lines])
