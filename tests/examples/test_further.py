"""Conversations that training packs together, and how they are written as text."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from examples.tiny_vlm import check, further, talks, tokens  # noqa: E402

from vlkv.eval import forms, tasks  # noqa: E402

CHECKPOINT = ROOT / "examples" / "tiny_vlm" / "checkpoint"


def follows(text, labels):
    """Returns whether each label is the next token in the text or the end of an answer."""
    pairs = zip(labels, [*text[1:], tokens.EOS], strict=True)
    return all(label in (talks.NONE, tokens.EOS) or label == after for label, after in pairs)


def test_a_conversation_says_each_answer_and_its_end():
    fields = forms.held_out_form(3).fields[:2]
    text, labels = talks.two_questions(fields)
    asked = tokens.question_ids(fields[0].key)
    assert text[: len(asked)] == asked and tokens.EOS not in text and follows(text, labels)
    said = [label for label in labels if label != talks.NONE]
    assert said == [*tokens.answer_ids(fields[0].value), *tokens.answer_ids(fields[1].value)]


def test_a_list_is_what_the_task_expects():
    sample = tasks.form_list(0, 3)
    text, labels = talks.list_of_keys(forms.held_out_form(3))
    said = [label for label in labels if label != talks.NONE]
    assert said[-1] == tokens.EOS and follows(text, labels)
    assert tokens.make_tokenizer().decode(said[:-1]).strip() == sample.turns[0].answer


def test_cells_know_their_field_and_the_one_before():
    form = forms.held_out_form(5)
    batch = talks.make_talks([form], [range(forms.GRID)], [[talks.list_of_keys(form)]])
    keys, before = batch.keys[0].numpy(), batch.before[0].numpy()
    order = [talks.KEY[field.key] for field in form.fields]
    seen = [int(key) for key in keys[keys != talks.NONE]]
    assert list(dict.fromkeys(seen)) == order
    for key, previous in zip(order, [talks.FIRST, *order], strict=False):
        assert set(before[keys == key]) == {previous}
    np.testing.assert_array_equal(before == talks.NONE, keys == talks.NONE)


@pytest.mark.parametrize("task", further.PLANS)
def test_packed_conversations_equal_the_chat_templates_prompts(task):
    model = transformers.LlavaForConditionalGeneration.from_pretrained(CHECKPOINT).eval()
    processor = transformers.AutoProcessor.from_pretrained(CHECKPOINT)
    form = forms.held_out_form(12)
    with torch.no_grad():
        asked = talks.conversations(task, form, 3, np.random.default_rng(1))
        batch = talks.make_talks([form], [range(forms.GRID)], [asked])
        packed = talks.answer_logits(model, batch, talks.text_states(model, batch))[0]
        pixels = processor.image_processor(check.png_picture(form), return_tensors="pt")["pixel_values"]
        for own, text in zip(packed, batch.tokens[0], strict=True):
            ids = torch.tensor([[tokens.BOS, *[tokens.IMAGE] * forms.GRID**2, *text.tolist()]])
            whole = model(input_ids=ids, pixel_values=pixels).logits[0, 1 + forms.GRID**2 :]
            torch.testing.assert_close(own, whole, atol=1e-4, rtol=1e-4)


def test_the_rate_warms_up_stays_and_falls():
    plan = further.PLANS["form-list"]
    steps = sum(steps for _, steps in plan.stages)
    rates = [further.rate_at(plan, step) for step in range(steps)]
    assert rates[0] < rates[10] < rates[further.WARM_UP] == plan.rates[0] == rates[479]
    assert all(a >= b for a, b in pairwise(rates[479:]))
    assert plan.rates[1] <= rates[-1] < 1.1 * plan.rates[1]


def test_a_folder_that_holds_something_is_refused_before_training(tmp_path, capsys):
    (tmp_path / "kept").touch()
    with pytest.raises(SystemExit) as stopped:
        further.main(["form-list", str(CHECKPOINT), "--output", str(tmp_path)])
    assert stopped.value.code == 2
    assert "not empty" in capsys.readouterr().err
