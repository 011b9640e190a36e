"""Reads whole checkpoints of every shape and compares them with what transformers reads."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models import generations, tiny
from vlkv_export.checkpoint import Checkpoint
from vlkv_export.models import read_checkpoint

CANONICAL = (
    ("model.language_model.", "text."),
    ("model.vision_tower.", "vision."),
    ("model.multi_modal_projector.", "projector."),
)


@pytest.fixture(scope="module", params=tiny.SHAPES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read_checkpoint(tiny.build(request.param, tmp_path_factory.mktemp("tiny") / request.param))


@pytest.fixture(scope="module")
def model(built: Checkpoint):
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(
        built.folder, dtype="auto", attn_implementation="eager"
    ).eval()


def check_config(checkpoint: Checkpoint, config) -> None:
    """Compares every fact that `config.json` decides with a transformers configuration."""
    text, vision = checkpoint.text, checkpoint.vision
    assert text.architecture == config.text_config.model_type
    for mine, theirs in {
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "query_heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "intermediate": "intermediate_size",
        "activation": "hidden_act",
        "eps": "rms_norm_eps",
        "vocab": "vocab_size",
    }.items():
        assert getattr(text, mine) == getattr(config.text_config, theirs), mine
    window = getattr(config.text_config, "sliding_window", None)
    assert text.windows == ((window,) * text.layers if window else ())
    assert text.max_positions == config.text_config.max_position_embeddings
    assert text.tied == config.tie_word_embeddings
    assert len(text.biases & {*"qkvo"}) in (0, 4) and len(text.biases - {*"qkvo"}) in (0, 3)
    assert ({*"qkvo"} <= text.biases) == getattr(config.text_config, "attention_bias", False)
    assert ({"gate", "up", "down"} <= text.biases) == getattr(config.text_config, "mlp_bias", False)
    for mine, theirs in {
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "intermediate": "intermediate_size",
        "image_size": "image_size",
        "patch_size": "patch_size",
        "channels": "num_channels",
        "activation": "hidden_act",
        "eps": "layer_norm_eps",
    }.items():
        assert getattr(vision, mine) == getattr(config.vision_config, theirs), mine
    assert vision.select == config.vision_feature_select_strategy
    layers = config.vision_feature_layer
    states = range(config.vision_config.num_hidden_layers + 1)
    assert vision.feature_layers == tuple(
        states[index] for index in (layers if isinstance(layers, list) else [layers])
    )
    assert checkpoint.projector.bias == config.multimodal_projector_bias
    tanh = config.projector_hidden_act == "gelu_pytorch_tanh"
    assert checkpoint.projector.activation == ("gelu_new" if tanh else config.projector_hidden_act)
    assert checkpoint.image.token_id == config.image_token_id


def test_facts_equal_the_loaded_configuration(built: Checkpoint, model) -> None:
    check_config(built, model.config)
    rotary = model.model.language_model.rotary_emb
    np.testing.assert_array_max_ulp(built.text.rope.inv_freq, rotary.inv_freq.float().numpy(), 2)
    assert built.text.rope.attention_factor == rotary.attention_scaling


def test_tensors_are_the_bytes_of_the_state_dict(built: Checkpoint, model) -> None:
    import torch

    state = {}
    for name, tensor in model.state_dict().items():
        for theirs, mine in CANONICAL:
            if name.startswith(theirs):
                name = mine + name.removeprefix(theirs)
        state[name] = tensor
    unused = {
        name
        for name in state
        if name.startswith("vision.post_layernorm")
        or any(
            name.startswith(f"vision.encoder.layers.{layer}.")
            for layer in range(max(built.vision.feature_layers), built.vision.layers)
        )
    }
    assert built.tensors.keys() == state.keys() - unused
    for name, tensor in built.tensors.items():
        assert tensor.shape == tuple(state[name].shape), name
        assert tensor.dtype == str(state[name].dtype).removeprefix("torch."), name
        with (built.folder / tensor.file).open("rb") as file:
            file.seek(tensor.offset)
            data = file.read(tensor.length)
        assert data == state[name].contiguous().view(torch.uint8).numpy().tobytes(), name


def test_image_tokens_are_as_many_as_features(built: Checkpoint, model) -> None:
    import torch
    from PIL import Image
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(built.folder)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 90, 3), dtype=np.uint8))
    inputs = processor(images=picture, text="<image>what", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, built.image.height, built.image.width)
    assert (inputs["input_ids"] == built.image.token_id).sum() == built.image.tile_features
    assert built.image.token == processor.image_token
    pixels = inputs["pixel_values"].to(model.dtype)
    with torch.no_grad():
        features = model.get_image_features(pixels).pooler_output
    assert features[0].shape == (built.image.tile_features, built.text.hidden)


def test_tokens_template_and_tokenizer_files(built: Checkpoint, model) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(built.folder)
    assert built.chat_template == processor.chat_template == tiny.CHAT
    generation = model.generation_config
    assert built.tokens.bos == generation.bos_token_id
    assert built.tokens.eos == (generation.eos_token_id,)
    assert built.tokens.pad == generation.pad_token_id
    assert built.tokenizer_files == ("tokenizer.json", "tokenizer_config.json")


def test_logits_are_not_degenerate(built: Checkpoint, model) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, tiny.VOCAB, (1, 24), generator=generator)
    with torch.no_grad():
        logits = model.float()(input_ids=ids).logits[0]
    model.to(getattr(torch, built.tensors["text.norm.weight"].dtype))
    assert torch.isfinite(logits).all()
    assert 0.5 < logits.std() < 10
    assert logits.argmax(-1).unique().numel() > 4


@pytest.mark.parametrize("name", ["llama", "llama-biases"])
def test_all_generations_give_the_same(name: str, tmp_path: Path) -> None:
    """Renaming tensors, keys and files to those of other versions changes no fact."""
    folders = [tiny.build(name, tmp_path / "saved")]
    for version, rewrite in (("2024", generations.make_2024), ("2025", generations.make_2025)):
        folders.append(Path(shutil.copytree(folders[0], tmp_path / version)))
        rewrite(folders[-1])
    assert (tmp_path / "2024" / "preprocessor_config.json").exists()
    assert (tmp_path / "2024" / "chat_template.json").exists()
    first, *others = map(read_checkpoint, folders)
    query = "text.layers.0.self_attn.q_proj.weight"
    fc1 = "vision.encoder.layers.0.mlp.fc1.weight"
    assert {(other.tensors[query].name, other.tensors[fc1].name) for other in (first, *others)} == {
        ("language_model.model" + query[4:], "vision_tower" + fc1[6:]),
        ("language_model.model" + query[4:], "vision_tower.vision_model" + fc1[6:]),
        ("model.language_model" + query[4:], "model.vision_tower.vision_model" + fc1[6:]),
    }
    for other in others:
        for field in ("vision", "projector", "image", "tokens", "chat_template", "tokenizer_files"):
            assert getattr(first, field) == getattr(other, field), field
        assert replace(first.text, rope=None) == replace(other.text, rope=None)
        assert np.array_equal(first.text.rope.inv_freq, other.text.rope.inv_freq)
        assert first.tensors.keys() == other.tensors.keys()
        for key, tensor in first.tensors.items():
            twin = other.tensors[key]
            assert (tensor.dtype, tensor.shape, tensor.length) == (twin.dtype, twin.shape, twin.length)
