"""The shipped example: its forms, the fast training path, and the checkpoint's answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from vlkv.eval import forms  # noqa: E402

EXAMPLE = ROOT / "examples" / "tiny_vlm"
CHECKPOINT = EXAMPLE / "checkpoint"


def test_forms_are_deterministic_by_seed():
    assert forms.held_out_form(7) == forms.held_out_form(7)
    assert forms.held_out_form(7).fields != forms.held_out_form(8).fields
    first, second = (forms.draw(forms.held_out_form(7)).tobytes() for _ in range(2))
    assert first == second


def test_form_of_a_seed_stays_what_it_is():
    assert [field.text for field in forms.held_out_form(0).fields[:3]] == [
        "dock: XAM",
        "year: DE8",
        "step: 7ZYU",
    ]


def test_training_and_held_out_seeds_are_disjoint():
    training, held_out = forms.TRAINING_SEEDS, forms.HELD_OUT_SEEDS
    assert max(training.start, held_out.start) >= min(training.stop, held_out.stop)
    assert forms.training_form(0, range(24), (12, 24)).seed in training
    assert forms.held_out_form(0).seed in held_out


def test_no_training_run_leaves_its_seeds():
    train = pytest.importorskip("examples.tiny_vlm.train")
    most = sum(stage.steps * (stage.forms or 64) for stage in train.STAGES)
    assert most < train.FORMS_PER_SEED
    assert len(forms.TRAINING_SEEDS) >= 1000 * train.FORMS_PER_SEED


@pytest.mark.parametrize("number", range(50))
def test_fields_fit_and_do_not_touch(number):
    form = forms.held_out_form(number)
    keys = [field.key for field in form.fields]
    assert len(set(keys)) == len(keys)
    assert forms.FIELD_COUNTS[0] <= len(keys) <= forms.FIELD_COUNTS[1]
    for field in form.fields:
        assert field.column // forms.HALF == (field.column + len(field.text)) // forms.HALF
    written = sum(len(field.text.replace(" ", "")) for field in form.fields)
    assert np.count_nonzero(forms.characters(form) != " ") == written


def test_each_glyph_is_inside_its_cell_and_told_from_others():
    form = forms.held_out_form(3)
    pixels = np.asarray(forms.draw(form).convert("L"))
    cells = pixels.reshape(forms.GRID, forms.CELL, forms.GRID, forms.CELL).swapaxes(1, 2)
    grid = forms.characters(form)
    assert set(np.unique(pixels)) == {0, 255}
    patterns = {}
    for place in np.ndindex(grid.shape):
        ink = np.argwhere(cells[place] == 0)
        assert (len(ink) > 0) == (grid[place] != " ")
        if len(ink):
            assert ink.min() >= 1 and ink.max() <= forms.CELL - 2
        patterns.setdefault(grid[place], set()).add(cells[place].tobytes())
    assert all(len(seen) == 1 for seen in patterns.values())
    assert len(set.union(*patterns.values())) == len(patterns)


def test_questions_ask_for_each_field():
    form = forms.held_out_form(0)
    assert forms.questions(form)[0] == ("what is the dock?", "XAM")
    assert forms.one_question(form) in forms.questions(form)


@pytest.fixture(scope="module")
def shipped():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(CHECKPOINT).eval()
    with torch.no_grad():
        yield model, transformers.AutoProcessor.from_pretrained(CHECKPOINT)


def test_prompt_is_eight_tokens_after_the_picture(shipped):
    from examples.tiny_vlm import tokens

    model, processor = shipped
    text = tokens.prompt(processor, forms.question("date"))
    assert text == "<image>what is the date?\nA:"
    picture = forms.draw(forms.held_out_form(0))
    ids = processor(images=picture, text=text, return_tensors="pt")["input_ids"][0].tolist()
    assert ids == [tokens.BOS, *[model.config.image_token_id] * 576, *tokens.question_ids("date")]
    assert processor.decode(ids[577:]) == "what is the date?\nA:"


def test_unknown_words_do_not_fail(shipped):
    from examples.tiny_vlm import tokens

    _, processor = shipped
    ids = processor.tokenizer("what is the colour?\n")["input_ids"]
    assert tokens.UNK in ids and ids[-1] == tokens.VOCABULARY["\n"]


def test_gathered_patches_equal_the_real_path(shipped, tmp_path):
    import torch
    from examples.tiny_vlm import fast_forms

    model, processor = shipped
    form = forms.held_out_form(11)
    forms.draw(form).save(tmp_path / "form.png")
    with Image.open(tmp_path / "form.png") as picture:
        pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"]
    patches = model.model.vision_tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    batch = fast_forms.make_batch([form], [range(forms.GRID)], questions=1, seed=0)
    torch.testing.assert_close(fast_forms.patch_embeddings(model, batch.cells), patches, atol=1e-6, rtol=1e-6)


def test_shared_questions_equal_separate_prompts(shipped):
    import torch
    from examples.tiny_vlm import check, fast_forms, tokens

    model, processor = shipped
    form = forms.held_out_form(12)
    batch = fast_forms.make_batch([form], [range(forms.GRID)], questions=3, seed=0)
    features = fast_forms.image_features(model, batch)
    states = fast_forms.text_states(model, batch, features)[-1]
    pixels = processor.image_processor(check.png_picture(form), return_tensors="pt")["pixel_values"]
    start = [tokens.BOS, *[tokens.IMAGE] * forms.GRID**2]
    for k in range(3):
        ids = torch.tensor([[*start, *batch.tokens[0, k].tolist()]])
        whole = model.model(input_ids=ids, pixel_values=pixels).last_hidden_state[:, len(start) :]
        block = states[:, len(start) + k * batch.block :][:, : batch.block]
        torch.testing.assert_close(block, whole, atol=1e-4, rtol=1e-4)


def test_small_caches_hide_only_from_answers():
    fast_forms = pytest.importorskip("examples.tiny_vlm.fast_forms")

    form = forms.held_out_form(13)
    whole = fast_forms.make_batch([form], [range(forms.GRID)], questions=2, seed=0)
    small = fast_forms.make_batch([form], [range(forms.GRID)], questions=2, seed=0, forgetful=1.0)
    picture, block, question = 1 + forms.GRID**2, whole.block, whole.question
    for open_mask, mask in zip(fast_forms.layer_masks(whole), fast_forms.layer_masks(small), strict=True):
        changed = (open_mask != mask)[0, 0]
        rows = changed[picture:].unflatten(0, (2, block))
        assert not changed[:picture].any() and not rows[:, :question].any()
        assert rows[:, question:, :picture].float().mean() > 0.5
        for k in range(2):
            start = picture + k * block
            assert (mask[0, 0, start:, start + fast_forms.KEY_ROW] == 0)[
                :block
            ].sum() == block - fast_forms.KEY_ROW


def test_shipped_checkpoint_answers(shipped):
    from examples.tiny_vlm import check

    assert check.exact_share(*shipped, range(2000, 2020)) == 1.0


def test_shipped_example_is_a_held_out_form_and_is_answered(shipped):
    from examples.tiny_vlm import check

    example = json.loads((EXAMPLE / "example.json").read_text(encoding="utf-8"))
    form = forms.random_form(example["seed"])
    assert form.seed in forms.HELD_OUT_SEEDS
    assert (example["prompt"], example["answer"]) in forms.questions(form)
    with Image.open(EXAMPLE / example["image"]) as picture:
        assert picture.convert("RGB").tobytes() == forms.draw(form).tobytes()
        assert check.answers(*shipped, [picture], [example["prompt"]]) == [example["answer"]]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    from vlkv import Engine
    from vlkv_export.directory import export_checkpoint
    from vlkv_export.engine import build_engine

    folder = tmp_path_factory.mktemp("tiny_vlm")
    export_checkpoint(CHECKPOINT, folder / "graphs")
    build_engine(folder / "graphs", folder / "engine")
    return Engine.load(folder / "engine", threads=1)


@pytest.mark.parametrize(("policy", "budget", "least"), [("full", 1.0, 20), ("vl-cache", 0.1, 19)])
def test_engine_reads_forms_with_the_full_cache_and_with_a_tenth(engine, policy, budget, least):
    from examples.tiny_vlm import measure

    right = [measure.exact(engine, forms.held_out_form(2020 + n), policy, budget)[0] for n in range(20)]
    assert sum(right) >= least


def test_demo_shows_right_answers_and_draws_what_was_kept(engine, tmp_path, capsys, monkeypatch):
    from examples import demo

    monkeypatch.setattr(sys, "argv", ["demo.py", str(engine.directory), "-o", str(tmp_path)])
    assert demo.main() == 0
    answer = json.loads((EXAMPLE / "example.json").read_text(encoding="utf-8"))["answer"]
    assert capsys.readouterr().out.count(answer) == 3
    with Image.open(tmp_path / "kept.png") as drawn, Image.open(EXAMPLE / "example.png") as picture:
        assert drawn.size == (5 * picture.width, picture.height)
        panels = np.split(np.asarray(drawn.convert("RGB"), np.int16), 5, axis=1)
    example = json.loads((EXAMPLE / "example.json").read_text(encoding="utf-8"))
    result = engine.generate(
        example["prompt"], [EXAMPLE / "example.png"], policy="vl-cache", budget=0.1, max_new_tokens=8
    )
    for panel, positions in zip(panels[1:], result.positions, strict=True):
        cells = (panel != panels[0]).any(axis=2).reshape(24, 14, 24, 14).any(axis=(1, 3)).ravel()
        kept = np.unique(positions)
        assert set(np.flatnonzero(cells)) == set(kept[(kept >= 1) & (kept <= 576)] - 1)


def test_checkpoint_is_small():
    assert sum(file.stat().st_size for file in CHECKPOINT.rglob("*")) < 8_000_000


def test_longer_prompts_ask_again(shipped):
    from examples.tiny_vlm import fast_forms, tokens

    _, processor = shipped
    asked = forms.question("date", tokens.question_words(2))
    text = tokens.prompt(processor, asked)
    ids = processor.tokenizer(text.removeprefix("<image>"))["input_ids"]
    assert ids[1:] == tokens.question_ids("date", 2) and tokens.UNK not in ids
    batch = fast_forms.make_batch([forms.held_out_form(5)], [range(forms.GRID)], questions=2, seed=0, times=2)
    assert batch.question == 14 and batch.tokens.shape[2] == batch.block == 18
    assert batch.hidden.shape[-1] == 1 + forms.GRID**2 + 14
    key = forms.KEYS[int(batch.keys[0, 0, -6])]
    assert batch.tokens[0, 0, :14].tolist() == tokens.question_ids(key, 2)


@pytest.mark.parametrize("times", [1, 2])
def test_training_runs_through_its_stages(monkeypatch, times):
    from dataclasses import replace

    import torch
    from rich.progress import Progress

    train = pytest.importorskip("examples.tiny_vlm.train")
    short = [
        replace(stage, rows=(1, 2), fields=(1, 2), questions=2, forms=4, steps=3) for stage in train.STAGES
    ]
    monkeypatch.setattr(train, "STAGES", short)
    with torch.enable_grad(), Progress(disable=True) as progress:
        model = train.train(3, progress, times)
        again = train.train(3, progress, times)
    start = train.make_model(3)
    trained, repeated, fresh = (m.lm_head.weight for m in (model, again, start))
    assert torch.isfinite(trained).all() and not torch.equal(trained, fresh)
    assert torch.equal(trained, repeated)


def test_a_table_of_several_checkpoints(tmp_path):
    from examples.tiny_vlm import spread

    results = {
        "one": {("full", 1.0): 1.0, ("vl-cache", 0.1): 0.9, ("vl-cache", 0.05): 0.5},
        "two": {("full", 1.0): 0.98, ("vl-cache", 0.1): 0.1, ("vl-cache", 0.05): 0.0},
    }
    rows = [row.split("|")[1:-1] for row in spread.table(results).splitlines()]
    assert [cell.strip() for cell in rows[3]] == ["vl-cache", "0.1", "50.0%", "10.0-90.0%", "90.0", "10.0"]
    spread.chart(results, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as chart:
        chart.load()
