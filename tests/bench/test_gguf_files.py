"""The text model's tensors as the peer llama.cpp gets them: names, values, and the order of rotated rows."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from vlkv.bench.environments import peer_file


@pytest.fixture(scope="module")
def gguf_files():
    spec = importlib.util.spec_from_file_location("gguf_files", peer_file("gguf_files.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_that_are_rotated_in_pairs_give_the_same_products(gguf_files):
    random = np.random.default_rng(3)
    heads, width, hidden = 3, 8, 5
    query, key = random.standard_normal((2, heads * width, hidden))
    token, other = random.standard_normal((2, hidden))
    angles = random.standard_normal((2, width // 2))

    def halves(rows, angle):
        x = (rows).reshape(heads, 2, width // 2)
        a, b = x[:, 0], x[:, 1]
        turned = a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)
        return np.concatenate(turned, axis=1)

    def pairs(rows, angle):
        x = rows.reshape(heads, width // 2, 2)
        a, b = x[..., 0], x[..., 1]
        turned = a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)
        return np.stack(turned, axis=2).reshape(heads, width)

    expected = (halves(query @ token, angles[0]) * halves(key @ other, angles[1])).sum(axis=1)
    query, key = (gguf_files.interleaved(matrix, heads) for matrix in (query, key))
    found = (pairs(query @ token, angles[0]) * pairs(key @ other, angles[1])).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_tensors_are_the_text_models_alone(gguf_files, checkpoint_of):
    folder = checkpoint_of("llama")
    stored = {}
    for path in folder.glob("*.safetensors"):
        stored |= load_file(path)
    found = dict(gguf_files.tensors(folder))
    layers = json.loads((folder / "config.json").read_text())["text_config"]["num_hidden_layers"]
    assert len(found) == 9 * layers + len({"embedding", "norm", "head"})
    for name, values in found.items():
        assert name.startswith(("model.embed_tokens", "model.norm", "model.layers.", "lm_head"))
        assert values.dtype == np.float32
        (original,) = (
            held
            for other, held in stored.items()
            if f".{other}".endswith("." + name.removeprefix("model.")) and "tower" not in other
        )
        np.testing.assert_array_equal(values, original.astype(np.float32))


def test_bfloat16_is_widened(gguf_files, tmp_path):
    header = json.dumps(
        {"lm_head.weight": {"dtype": "BF16", "shape": [2, 1], "data_offsets": [0, 4]}}
    ).encode()
    data = np.array([1.5, -3.0], np.float32).view(np.uint32) >> 16
    file = len(header).to_bytes(8, "little") + header + data.astype(np.uint16).tobytes()
    (tmp_path / "model.safetensors").write_bytes(file)
    ((name, values),) = gguf_files.tensors(tmp_path)
    assert name == "lm_head.weight"
    np.testing.assert_array_equal(values, np.array([[1.5], [-3.0]], np.float32))


def test_what_cannot_be_converted_is_named(gguf_files, tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"model_type": "mamba"}}))
    with pytest.raises(ValueError, match="text model 'mamba' is not converted here; llama, mistral"):
        gguf_files.write(tmp_path, tmp_path / "x.gguf")


def test_words_of_a_tokenizer_are_pieces_with_a_blank_and_special_ones_stay(gguf_files, tmp_path):
    class Writer:
        def __init__(self):
            self.given = {}

        def __getattr__(self, name):
            return lambda value: self.given.update({name.removeprefix("add_"): value})

    vocab = {"<unk>": 0, "</s>": 1, "b": 3, "a": 2}
    added = [{"content": text, "special": True} for text in ("<unk>", "</s>")]
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": model}))
    writer = Writer()
    gguf_files.vocabulary(writer, tmp_path, {"eos_token_id": 1, "bos_token_id": 0})
    assert writer.given["token_list"] == ["<unk>", "</s>", "\u2581a", "\u2581b"]
    assert writer.given["token_types"] == [2, 3, 1, 1]
    assert writer.given["unk_token_id"] == 0
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": {"type": "BPE"}}))
    with pytest.raises(ValueError, match="tokenizer 'BPE' is not converted here; WordLevel is"):
        gguf_files.vocabulary(writer, tmp_path, {})
