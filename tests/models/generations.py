"""Rewrites checkpoints that transformers saved as other versions wrote them: names, keys and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_STYLES = {
    "saved": ("vision_tower.", "language_model.model.", "language_model.lm_head.", "multi_modal_projector."),
    "2024": (
        "vision_tower.vision_model.",
        "language_model.model.",
        "language_model.lm_head.",
        "multi_modal_projector.",
    ),
    "2024, pixtral": (
        "vision_tower.",
        "language_model.model.",
        "language_model.lm_head.",
        "multi_modal_projector.",
    ),
    "2025": (
        "model.vision_tower.vision_model.",
        "model.language_model.",
        "lm_head.",
        "model.multi_modal_projector.",
    ),
}


def _renamed(name: str, style: str) -> str:
    vision, text, head, projector = _STYLES[style]
    name = name.replace("language_model.lm_head.", "lm_head.").removeprefix("model.")
    for start, end in (
        ("vision_tower.vision_model.", vision),
        ("vision_tower.", vision),
        ("language_model.model.", text),
        ("language_model.", text),
        ("lm_head.", head),
        ("multi_modal_projector.", projector),
        ("image_newline", "image_newline"),
    ):
        if name.startswith(start):
            return end + name.removeprefix(start)
    raise ValueError(name)


def rename(folder: Path, style: str) -> None:
    """Rewrites the weights of a checkpoint under the tensor names of another version of transformers.

    `style` is "2024" (llava-hf's files; "2024, pixtral" with a tower of that name), "2025" (transformers 4.52) or
    "saved" (what 5.23 writes).
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    weight_map = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors = {_renamed(name, style): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        save_file(tensors, path, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, path.name)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        _dump(index, json.loads(index.read_text()) | {"weight_map": weight_map})


def make_2024(folder: Path) -> None:
    """Rewrites a saved checkpoint like llava-hf's files of 2024: tensor names, keys and files."""
    rename(folder, "2024")
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["torch_dtype"] = values.pop("dtype")
    for part in ("text_config", "vision_config"):
        values[part].pop("dtype", None)
    rope = values["text_config"].pop("rope_parameters")
    values["text_config"]["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    if kind != "default":
        values["text_config"]["rope_scaling"] = {"type": kind, **rope}
    _dump(path, values)

    combined = folder / "processor_config.json"
    values = json.loads(combined.read_text())
    _dump(folder / "preprocessor_config.json", values.pop("image_processor"))
    _dump(combined, values)
    _dump(folder / "chat_template.json", {"chat_template": (folder / "chat_template.jinja").read_text()})
    (folder / "chat_template.jinja").unlink()


def make_2025(folder: Path) -> None:
    """Rewrites a saved checkpoint with tensor names as in memory, and the image token as `image_token_id`."""
    rename(folder, "2025")
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["image_token_id"] = values.pop("image_token_index")
    _dump(path, values)


def _dump(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
