"""A checkpoint's folder, read whole: configuration, processor, tokenizer, and the headers of its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vlkv.errors import CheckpointError
from vlkv_export.checkpoint import config as configuration
from vlkv_export.checkpoint import layout, processor, prompt, weights
from vlkv_export.checkpoint.facts import Checkpoint
from vlkv_export.checkpoint.fields import Fields, read_object, show


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a Hugging Face LLaVA folder: `config.json`, safetensors headers, processor and tokenizer files.

    Both generations of every file are understood. Raises `CheckpointError`, one line that names what was
    found and what would work, for anything missing, damaged or unsupported.
    """
    try:
        return _read(Path(folder))
    except OSError as error:
        raise CheckpointError(f"{folder} can't be read: {error.strerror or error}") from None


def _read(folder: Path) -> Checkpoint:
    config = Fields(read_object(_config_path(folder)), str(folder / "config.json"))
    configuration.check_architecture(config)
    vision = configuration.read_vision(config)
    projector = configuration.read_projector(config)
    text = configuration.read_text(config)
    token_id = configuration.read_image_token(config, text.vocab)
    files = prompt.tokenizer_files(folder)
    image = processor.read_image(
        processor.read_processor(folder), vision, token_id, prompt.image_token(folder, token_id)
    )
    tokens = prompt.read_tokens(folder, config, text.vocab)
    template = prompt.read_chat_template(folder)
    found = weights.find(folder)
    for name in layout.unexpected_biases(text):
        if name in found:
            raise CheckpointError(
                f"{folder}: the weights hold {found[name][0]}, config.json says that there is none; "
                "set attention_bias or mlp_bias of text_config"
            )
    tensors = weights.select(folder, found, layout.expected(vision, projector, text), text.tied)
    text = replace(text, tied=tensors[layout.HEAD] == tensors[layout.EMBEDDING])
    return Checkpoint(folder, vision, projector, text, image, tokens, tensors, template, files)


def _config_path(folder: Path) -> Path:
    advice = "give the folder of a Hugging Face checkpoint"
    path = folder / "config.json"
    try:
        there, directory, config = folder.exists(), folder.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{show(str(folder))} can't be read: {error}; {advice}") from None
    if not there:
        raise CheckpointError(f"{folder} does not exist; {advice}")
    if not directory:
        raise CheckpointError(f"{folder} is not a folder; {advice}")
    if not config:
        raise CheckpointError(f"{folder} has no config.json; {advice}")
    return path
