"""Writes the text model of a LLaVA checkpoint as a GGUF file for llama.cpp; of tokenizers only whole words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""GGUF's name of the architecture, by `model_type`."""
DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
NORMAL, UNKNOWN, CONTROL = 1, 2, 3
"""GGUF's types of tokens."""


def write(checkpoint: Path, target: Path, words: bool = False) -> None:
    """Writes all text weights in float32 to `target`, with the tokenizer's words or without a vocabulary.

    Raises:
        ValueError: llama.cpp has no architecture for this text model, or its tokenizer is not one of whole words.
    """
    import gguf

    config = json.loads((checkpoint / "config.json").read_text())
    text = config.get("text_config", config)
    kind = text.get("model_type", "llama")
    if kind not in ARCHITECTURES:
        raise ValueError(f"text model {kind!r} is not converted here; {', '.join(ARCHITECTURES)} are")
    rope = text.get("rope_parameters") or {}
    scaling = text.get("rope_scaling") or rope
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        raise ValueError("scaled rotary positions are not converted here")
    weights = dict(tensors(checkpoint))
    writer = gguf.GGUFWriter(target, ARCHITECTURES[kind])
    facts(writer, text, rope, weights)
    if words:
        vocabulary(writer, checkpoint, config)
    else:
        writer.add_tokenizer_model("none")
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == ARCHITECTURES[kind])
    names = gguf.get_tensor_name_map(number, text["num_hidden_layers"])
    for name, values in weights.items():
        part = re.search(r"\.([qk])_proj\.", name)
        if part and ARCHITECTURES[kind] == "llama":
            key = "num_attention_heads" if part[1] == "q" else "num_key_value_heads"
            values = interleaved(values, text.get(key, text["num_attention_heads"]))
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored is None:
            raise ValueError(f"GGUF has no place for the tensor {name}")
        writer.add_tensor(stored, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def facts(writer: Any, text: dict[str, Any], rope: dict[str, Any], weights: dict[str, Any]) -> None:
    """Adds the sizes of the model; the vocabulary is a size only."""
    heads = text["num_attention_heads"]
    width = text.get("head_dim") or text["hidden_size"] // heads
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(text.get("num_key_value_heads", heads))
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(text.get("rope_theta") or rope.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(text.get("rms_norm_eps", 1e-6))
    writer.add_vocab_size(weights["model.embed_tokens.weight"].shape[0])


def vocabulary(writer: Any, checkpoint: Path, config: dict[str, Any]) -> None:
    """Adds a tokenizer of whole words. llama.cpp has none; its Unigram with equal scores prefers the fewest pieces."""
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    if tokenizer["model"]["type"] != "WordLevel":
        raise ValueError(f"tokenizer {tokenizer['model']['type']!r} is not converted here; WordLevel is")
    special = {token["content"] for token in tokenizer["added_tokens"] if token["special"]}
    unknown = tokenizer["model"]["unk_token"]
    texts = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    kinds = [UNKNOWN if text == unknown else CONTROL if text in special else NORMAL for text in texts]
    writer.add_tokenizer_model("t5")
    writer.add_token_list([text if text in special else f"\u2581{text}" for text in texts])
    writer.add_token_scores([-1.0] * len(texts))
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_unk_token_id(texts.index(unknown))
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def interleaved(values: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorders the rows of each head: llama.cpp rotates neighbouring elements, transformers the two halves."""
    rows = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return rows.swapaxes(1, 2).reshape(values.shape)


def tensors(checkpoint: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yields the text model's tensors in float32, under the names of a checkpoint without a tower."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        for stored, entry in header.items():
            name = stored.replace("language_model.lm_head.", "lm_head.")
            name = re.sub(r"^(model\.language_model|language_model\.model)\.", "model.", name)
            if not re.match(r"(model\.(embed_tokens|norm|layers)|lm_head)\.", name):
                continue
            if entry["dtype"] not in DTYPES:
                raise ValueError(f"{stored} is {entry['dtype']}; {', '.join(DTYPES)} are converted")
            dtype, begin = DTYPES[entry["dtype"]], 8 + size + entry["data_offsets"][0]
            found = np.memmap(path, dtype, "r", begin, (prod(entry["shape"]),)).reshape(entry["shape"])
            if dtype is np.uint16:
                yield name, (found.astype(np.uint32) << 16).view(np.float32)
            else:
                yield name, found.astype(np.float32)
