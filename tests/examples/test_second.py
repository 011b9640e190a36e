"""Conversations that training packs together, and how they are told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from examples.tiny_vlm import check, second, second_turns, tokens  # noqa: E402

from vlkv.eval import forms  # noqa: E402

CHECKPOINT = ROOT / "examples" / "tiny_vlm" / "checkpoint"


def test_a_conversation_says_each_answer_and_its_end():
    fields = forms.held_out_form(3).fields[:2]
    text, labels = second_turns.conversation(fields)
    assert text[: len(tokens.question_ids("date"))] == tokens.question_ids(fields[0].key)
    assert tokens.EOS not in text
    said = [label for label in labels if label != second_turns.NONE]
    assert said == [*tokens.answer_ids(fields[0].value), *tokens.answer_ids(fields[1].value)]
    # what is said at a token is what comes after it, but for the end
    for place, label in enumerate(labels):
        assert label in (second_turns.NONE, tokens.EOS) or text[place + 1] == label


def test_packed_conversations_equal_the_chat_templates_prompts():
    model = transformers.LlavaForConditionalGeneration.from_pretrained(CHECKPOINT).eval()
    processor = transformers.AutoProcessor.from_pretrained(CHECKPOINT)
    form = forms.held_out_form(12)
    with torch.no_grad():
        talks = second_turns.make_talks([form], [range(forms.GRID)], count=3, seed=1)
        packed = second_turns.answer_logits(model, talks)[0]
        pixels = processor.image_processor(check.png_picture(form), return_tensors="pt")["pixel_values"]
        for own, text in zip(packed, talks.tokens[0], strict=True):
            ids = torch.tensor([[tokens.BOS, *[tokens.IMAGE] * forms.GRID**2, *text.tolist()]])
            whole = model(input_ids=ids, pixel_values=pixels).logits[0, 1 + forms.GRID**2 :]
            torch.testing.assert_close(own, whole, atol=1e-4, rtol=1e-4)


def test_a_folder_that_holds_something_is_refused_before_training(tmp_path, capsys):
    (tmp_path / "kept").touch()
    with pytest.raises(SystemExit) as stopped:
        second.main([str(CHECKPOINT), "--output", str(tmp_path)])
    assert stopped.value.code == 2
    assert "not empty" in capsys.readouterr().err
