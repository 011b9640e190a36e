"""The reader without its real language model: forms, the shipped tower, and merged LoRA weights."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from examples.real_reader import reader, tower, words  # noqa: E402

from vlkv.eval.forms import GRID, HELD_OUT_SEEDS, TRAINING_SEEDS  # noqa: E402


def test_classes_are_the_closed_list():
    found = words.texts()
    assert len(set(found)) == len(found) <= 576 and found[words.BLANK] == ""
    form = words.forms().held_out(3)
    labels = words.patches(form)
    assert [found[label] for label in labels] == words.forms().grid(form).ravel().tolist()


def test_training_draws_no_held_out_form():
    steps = sum(stage.steps * stage.forms for stage in reader.STAGES)
    assert steps < 500_000 and 2 * (tower.STEPS - tower.FORMS_FROM) < 500_000
    assert len(TRAINING_SEEDS) >= 1000 * 1_000_000 and TRAINING_SEEDS.stop <= HELD_OUT_SEEDS.start


class Characters:
    """A tokenizer with one token per character."""

    def encode(self, text, add_special_tokens=False):
        return [ord(character) for character in text]


def test_conversations_are_those_of_the_template():
    tokens, labels = reader.conversation(Characters(), [("what is it?", "42"), ("and?", "no")])
    text = "".join(map(chr, tokens))
    assert text == (
        "\nwhat is it?<|im_end|>\n<|im_start|>assistant\n42<|im_end|>"
        "\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\nno<|im_end|>"
    )
    said = [(number, label) for number, label in enumerate(labels) if label != reader.NONE]
    assert all(tokens[number + 1] == label for number, label in said)
    assert "".join(chr(label) for _, label in said) == "42<|im_end|>no<|im_end|>"
    jinja = pytest.importorskip("jinja2").Template(words.CHAT_TEMPLATE)
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "no"},
    ]
    rendered = jinja.render(messages=messages, add_generation_prompt=False)
    assert rendered == words.BEFORE_PICTURE + "<image>" + text + "\n"


def test_batches_show_every_word_and_as_many_patches_as_asked():
    stage = reader.Stage(2, 100, 3, 4, (6, 20), (1e-3, 1e-3))
    for batch in reader.batches(stage, Characters(), np.random.default_rng(), iter(range(50))):
        assert batch.shown.shape == batch.places.shape == (3, 100)
        assert (np.diff(batch.places.numpy()) > 0).all()
        assert batch.labels.shape == batch.after.shape
        assert ((batch.shown != words.BLANK).sum(1) >= 6 * 3).all()


def small_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=200, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_merged_products_equal_those_beside():
    pytest.importorskip("safetensors")
    from examples.real_reader.join import merge

    plain, adapted = small_llama(), small_llama()
    added, table = reader.adapt(adapted), reader.Table(adapted, [3, 4])
    plain.model.layers.bfloat16()  # as the frozen matrices are rounded
    for model in (plain, adapted):
        model.model.layers.float()
    with torch.no_grad():
        for lora in added.values():
            lora.up.normal_(std=0.1)
    ids = torch.arange(20)[None]
    before = plain(ids).logits
    merge(plain, reader.weights_of(added, table))
    torch.testing.assert_close(plain(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-5)
    assert (plain(ids).logits - before).abs().max() > 0.01


@pytest.fixture(scope="module")
def shipped():
    pytest.importorskip("safetensors")
    from examples.real_reader.join import load_delta

    return load_delta()


def test_the_shipped_tower_reads_pictures(shipped):
    """Classifies every patch of a fresh form from its pixels, with transformers' own CLIP."""
    shipped_tower, trained = shipped
    assert trained["blank"].shape == (576,) and len(trained) == 1 + 2 * len(reader.ADAPTED) * 30
    form = words.forms().held_out(int(np.random.default_rng().integers(1_000_000)))
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (tower.MEAN, tower.DEVIATION))
    colours = torch.from_numpy(np.asarray(words.forms().draw(form)).transpose(2, 0, 1) / np.float32(255))
    pixels = (colours - mean) / deviation
    with torch.no_grad():
        states = shipped_tower.tower(pixels[None]).last_hidden_state[:, 1:]
        numbers = shipped_tower.classify(states)[0]
        cell = words.forms().cell
        grey = colours[0].reshape(GRID, cell, GRID, cell).transpose(1, 2).reshape(1, GRID * GRID, -1)
        alone = shipped_tower(grey, torch.arange(GRID * GRID)[None])[0]
    assert (numbers.argmax(-1).numpy() == words.patches(form)).all()
    torch.testing.assert_close(alone, numbers, rtol=1e-3, atol=2e-3)
