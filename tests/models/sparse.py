"""LLaVA checkpoints of any size without weights: headers with the right shapes before a hole that takes no disk.

    folder = sparse.write(tmp_path / "7b", sparse.LLAVA_7B)

The names are those of llava-hf's files. Reading a weight gives zeros.
"""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path
from typing import Any

LLAVA_7B: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
"""`config.json` of llava-1.5-7b-hf. Most fields have the defaults of their classes."""

SMALL: dict[str, Any] = {
    **LLAVA_7B,
    "image_token_index": 9,
    "pad_token_id": 0,
    "text_config": {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 12,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "image_size": 28,
        "patch_size": 14,
    },
}
"""A configuration that is small enough to be written hundreds of times in a test."""

PROCESSOR = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": True, "do_resize": True}
BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "I8": 1}
_PREFIXES = {
    "text.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "vision.": "vision_tower.vision_model.",
    "projector.": "multi_modal_projector.",
}


def write(folder: Path, config: dict[str, Any], dtype: str = "F16") -> Path:
    """Writes the folder: configuration, processor, tokenizer, and `model.safetensors` as a sparse file."""
    folder.mkdir(parents=True, exist_ok=True)
    dump(folder / "config.json", config)
    size = config["vision_config"]["image_size"]
    dump(folder / "preprocessor_config.json", {**PROCESSOR, "size": size, "crop_size": size})
    token = {"id": config["image_token_index"], "content": "<image>", "special": True}
    dump(folder / "tokenizer.json", {"version": "1.0", "added_tokens": [token], "model": {"vocab": {}}})
    write_weights(folder / "model.safetensors", header(config, dtype))
    return folder


def header(config: dict[str, Any], dtype: str = "F16") -> dict[str, Any]:
    """Returns the header of all tensors that `config` asks for, one after the other."""
    from vlkv_export.checkpoint import layout
    from vlkv_export.checkpoint.fields import Fields
    from vlkv_export.models.reader import read_parts

    parts = read_parts(Fields(config, "config"))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in parts.tensors():
        if name == layout.HEAD and parts.text.tied:
            continue
        prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
        begin, end = end, end + BYTES[dtype] * _product(shape)
        old = _PREFIXES[prefix] + name.removeprefix(prefix)
        entries[old] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    return entries


def write_weights(path: Path, entries: dict[str, Any] | bytes, size: int | None = None) -> None:
    """Writes a safetensors file with this header and `size` zeros (default: the bytes that it names)."""
    if not isinstance(entries, bytes):
        if size is None:
            size = max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
        entries = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(entries)) + entries)
        file.truncate(8 + len(entries) + (size or 0))


def changed(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Returns a configuration with changes. `text_config` and `vision_config` are merged."""
    result = copy.deepcopy(config)
    for name, value in changes.items():
        nested = name in ("text_config", "vision_config") and isinstance(value, dict)
        result[name] = result[name] | value if nested else value
    return result


def dump(path: Path, values: Any) -> None:
    """Writes JSON."""
    path.write_text(json.dumps(values))


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
