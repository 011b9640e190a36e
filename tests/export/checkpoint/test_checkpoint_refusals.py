"""Every fault of a checkpoint is reported in one line that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models import sparse
from vlkv.errors import CheckpointError
from vlkv_export.models import read_checkpoint

TEXT, VISION = "text_config", "vision_config"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sparse.write(tmp_path / "checkpoint", sparse.SMALL)


def refused(folder: Path | str, *parts: str) -> None:
    """Checks that the folder is refused in one line that holds all `parts`."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder)
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line, line


def test_good(folder: Path) -> None:
    assert read_checkpoint(folder).text.layers == 2
    assert read_checkpoint(str(folder)).folder == folder


def test_folders(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "nothing does not exist; give the folder of a Hugging Face checkpoint")
    refused(folder / "config.json", "config.json is not a folder")
    refused("a\0b", "does not exist")
    refused("x" * 5000, "can't be read")
    (folder / "config.json").unlink()
    refused(folder, "has no config.json")
    (folder / "config.json").mkdir()
    refused(folder, "config.json can't be read: Is a directory")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        ('{"a": 1' + "0" * 5000 + "}", "is not valid JSON"),
        ("[" * 200_000, "nested too deeply"),
        ("[1]", "holds [1], not a JSON object"),
        ("null", "holds None"),
        ("{}", "architectures None of model_type None is not supported; supported: LlavaForCond"),
    ],
)
def test_broken_json(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    refused(folder, "config.json", message)


def test_not_utf8(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"a": "\xff\xfe"}')
    refused(folder, "config.json", "is not valid JSON")
    sparse.dump(folder / "config.json", sparse.SMALL)
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    refused(folder, "chat_template.jinja is not UTF-8 text")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MllamaForConditionalGeneration"]}, "MllamaForConditionalGeneration"),
        ({"model_type": "llava_next"}, "and model_type 'llava_next' disagree; LlavaForConditionalG"),
        ({"architectures": None, "model_type": "qwen2_vl"}, "model_type 'qwen2_vl' is not supported"),
        ({VISION: {"model_type": "dinov2"}}, "vision tower 'dinov2' is not supported; supported: clip_"),
        ({TEXT: {"model_type": "gemma2"}}, "is not supported (it caps attention scores, which"),
        ({TEXT: {"model_type": "bloom"}}, "text model 'bloom' is not supported; supported: llama, mistral"),
        ({TEXT: {"hidden_act": "mish"}}, "hidden_act 'mish' is not supported; supported: quick_gelu, gelu"),
        ({VISION: {"hidden_act": "laplace"}}, "hidden_act 'laplace' is not supported"),
        ({"projector_hidden_act": "tanh"}, "projector_hidden_act 'tanh' is not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, "names awq, and no matrix of the weights is"),
        ({TEXT: {"quantization_config": {"quant_method": "gptq"}}}, "text_config: quantization_config"),
        ({"image_token_index": 12}, "image_token_index 12 is outside the vocabulary of 12"),
        ({"image_token_id": 99}, "image_token_id 99 is outside the vocabulary of 12"),
        ({"image_token_index": -1}, "image_token_index is -1; it must be an integer from 0"),
        ({TEXT: {"num_key_value_heads": 3}}, "4 is not a multiple of num_key_value_heads 3"),
        ({TEXT: {"hidden_size": 18}}, "hidden_size 18 is not a multiple of num_attention_heads 4, and"),
        ({TEXT: {"head_dim": 5}}, "head_dim 5 is odd"),
        ({TEXT: {"hidden_size": 20}}, "head_dim 5 is odd"),
        ({TEXT: {"hidden_size": "16"}}, "text_config: hidden_size is '16'; it must be an integer from 1"),
        ({TEXT: {"num_hidden_layers": 10**9}}, "num_hidden_layers is 1000000000"),
        ({TEXT: {"rms_norm_eps": 0}}, "rms_norm_eps is 0; it must be a number above 0"),
        ({TEXT: {"vocab_size": True}}, "vocab_size is True"),
        ({TEXT: {"attention_bias": "no"}}, "attention_bias is 'no'; it must be true or false"),
        ({TEXT: []}, "text_config is []; it must be a JSON object"),
        ({VISION: {"num_attention_heads": 3}}, "hidden_size 8 is not a multiple of 3 attention heads"),
        ({VISION: {"image_size": [28, 28]}}, "image_size is [28, 28]; it must be an integer"),
        ({VISION: {"patch_size": 29}}, "patch_size 29 is larger than image_size 28"),
        ({VISION: {"num_channels": 1}}, "num_channels is 1; it must be an integer from 3 to 3"),
        ({"vision_feature_layer": 3}, "vision_feature_layer is 3; it must be one or a list of the 3 hidden"),
        ({"vision_feature_layer": [-4]}, "vision_feature_layer is [-4]"),
        ({"vision_feature_layer": []}, "vision_feature_layer is []"),
        ({"vision_feature_layer": 1.0}, "vision_feature_layer is 1.0"),
        ({"vision_feature_select_strategy": "cls"}, 'is \'cls\'; it must be "default" or "full"'),
    ],
)  # fmt: skip
def test_configurations(folder: Path, changes: dict[str, Any], message: str) -> None:
    sparse.dump(folder / "config.json", sparse.changed(sparse.SMALL, **changes))
    refused(folder, "config.json", message)


def test_adapters_are_never_ignored(folder: Path, tmp_path: Path) -> None:
    base = {"base_model_name_or_path": "some/llava", "peft_type": "LORA"}
    sparse.dump(folder / "adapter_config.json", base)
    refused(
        folder, "adapter_config.json: an adapter of 'some/llava' without adapter_model.safetensors beside it"
    )
    alone = tmp_path / "alone"
    alone.mkdir()
    sparse.dump(alone / "adapter_config.json", base)
    refused(alone, "an adapter of 'some/llava' without")


POINTED = (
    "config.json",
    "tokenizer.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "model.safetensors",
)


@pytest.mark.parametrize("name", POINTED)
def test_git_lfs_pointers(folder: Path, name: str) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(folder, f"{name} is a Git LFS pointer, not the file; fetch it with `git lfs pull`")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model.fp16.safetensors", "holds model.fp16.safetensors but no model.safetensors; rename it"),
        ("llava.gguf", "holds GGUF files; give the Hugging Face checkpoint"),
        ("pytorch_model.bin", "holds PyTorch files but no model.safetensors"),
    ],
)
def test_other_weight_files(folder: Path, name: str, text: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, text)


def test_code_is_never_run_and_that_is_told(folder: Path) -> None:
    sparse.dump(folder / "config.json", sparse.SMALL | {"auto_map": {"AutoModel": "evil.Model"}})
    sparse.dump(folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Words", None]}})
    notes = read_checkpoint(folder).notes
    assert len(notes) == 2 and all("auto_map" in note and "never run" in note for note in notes)
    assert "config.json" in notes[0] and "tokenizer_config.json" in notes[1]


def test_generation_settings(folder: Path) -> None:
    path = folder / "generation_config.json"
    sparse.dump(
        path, {"repetition_penalty": 1.1, "bad_words_ids": [[3], [4, 5]], "num_beams": 4, "do_sample": True}
    )
    found = read_checkpoint(folder)
    assert (found.generation.repetition_penalty, found.generation.bad_words) == (1.1, ((3,), (4, 5)))
    assert found.notes == (
        "generation_config.json: num_beams 4 is not honoured; answers are those without it",
    )
    sparse.dump(path, {"suppress_tokens": [99]})
    refused(folder, "suppress_tokens is [99]; it must be ids of the vocabulary of 12")


@pytest.mark.parametrize("vocab", [{"a": 0, "b": 12}, [["a", 0.0]] * 13])
def test_another_models_tokenizer(folder: Path, vocab: object) -> None:
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    sparse.dump(path, values | {"model": {"vocab": vocab}})
    refused(folder, "has ids up to 12, the embedding table has 12 rows: the tokenizer is another model's")
    sparse.dump(path, values | {"model": {"vocab": {"a": 0, "b": 11}}})
    read_checkpoint(folder)


def test_tokens_beyond_the_embedding_table_are_told(folder: Path) -> None:
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["added_tokens"].append({"id": 99, "content": "<far>"})
    sparse.dump(path, values)
    (note,) = read_checkpoint(folder).notes
    said = (
        "ids up to 99, 1 of them added tokens such as '<far>', are beyond the 12 rows of the embedding table"
    )
    assert said in note
