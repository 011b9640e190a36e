"""Writes LLaVA checkpoints of random weights, seeded, so that timings have real sizes. They answer nothing.

python examples/benchmark/make_checkpoint.py 150m out/bench/150m
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

IMAGE = "<image>"
SPECIAL = ("<unk>", "<s>", "</s>", IMAGE)
VISION = {"image_size": 336, "patch_size": 14}
NAMES = {"float32": "F32", "float16": "F16"}


@dataclass(frozen=True)
class Size:
    """Widths of a checkpoint; `dtype` is that of its weights, a sparse one holds zeros that take no disk."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    vision_hidden: int
    vision_layers: int
    vision_intermediate: int
    positions: int = 65536
    dtype: str = "float32"
    sparse: bool = False


SIZES = {
    "20m": Size(320, 6, 5, 5, 864, 16000, 128, 2, 256),
    "150m": Size(768, 12, 12, 4, 2048, 32000, 256, 4, 512),
    "7b": Size(4096, 32, 32, 32, 11008, 32064, 1024, 24, 4096, 4096, "float16", sparse=True),
}


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Tensor names as transformers writes them, and their shapes."""
    hidden, vision = size.hidden, size.vision_hidden
    kv = size.kv_heads * hidden // size.heads
    patches = (VISION["image_size"] // VISION["patch_size"]) ** 2
    found: dict[str, tuple[int, ...]] = {
        "model.language_model.embed_tokens.weight": (size.vocab, hidden),
        "model.language_model.norm.weight": (hidden,),
        "lm_head.weight": (size.vocab, hidden),
        "model.vision_tower.vision_model.embeddings.class_embedding": (vision,),
        "model.vision_tower.vision_model.embeddings.patch_embedding.weight": (vision, 3, 14, 14),
        "model.vision_tower.vision_model.embeddings.position_embedding.weight": (patches + 1, vision),
        "model.vision_tower.vision_model.pre_layrnorm.weight": (vision,),
        "model.vision_tower.vision_model.pre_layrnorm.bias": (vision,),
    }
    for number, (rows, columns) in enumerate(((hidden, vision), (hidden, hidden)), 1):
        found[f"model.multi_modal_projector.linear_{number}.weight"] = (rows, columns)
        found[f"model.multi_modal_projector.linear_{number}.bias"] = (rows,)
    for layer in range(size.layers):
        name = f"model.language_model.layers.{layer}"
        for part, rows in zip("qkvo", (hidden, kv, kv, hidden), strict=True):
            found[f"{name}.self_attn.{part}_proj.weight"] = (rows, hidden)
        for part in ("gate", "up"):
            found[f"{name}.mlp.{part}_proj.weight"] = (size.intermediate, hidden)
        found[f"{name}.mlp.down_proj.weight"] = (hidden, size.intermediate)
        for norm in ("input", "post_attention"):
            found[f"{name}.{norm}_layernorm.weight"] = (hidden,)
    for layer in range(size.vision_layers):
        name = f"model.vision_tower.vision_model.encoder.layers.{layer}"
        square = {f"self_attn.{part}_proj": (vision, vision) for part in ("q", "k", "v", "out")}
        mlp = {"mlp.fc1": (size.vision_intermediate, vision), "mlp.fc2": (vision, size.vision_intermediate)}
        for part, shape in (square | mlp).items():
            found[f"{name}.{part}.weight"], found[f"{name}.{part}.bias"] = shape, shape[:1]
        for norm in ("layer_norm1", "layer_norm2"):
            found[f"{name}.{norm}.weight"] = found[f"{name}.{norm}.bias"] = (vision,)
    return found


def config(size: Size) -> dict[str, object]:
    """`config.json`."""
    text = {
        "model_type": "llama",
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "intermediate_size": size.intermediate,
        "vocab_size": size.vocab,
        "max_position_embeddings": size.positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    vision = VISION | {
        "model_type": "clip_vision_model",
        "hidden_size": size.vision_hidden,
        "num_hidden_layers": size.vision_layers,
        "num_attention_heads": size.vision_hidden // 64,
        "intermediate_size": size.vision_intermediate,
    }
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": SPECIAL.index(IMAGE),
        "text_config": text,
        "vision_config": vision,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "torch_dtype": size.dtype,
        "eos_token_id": SPECIAL.index("</s>"),
        "bos_token_id": SPECIAL.index("<s>"),
    }


def write_weights(size: Size, seed: int, path: Path) -> None:
    """`model.safetensors`: norms one, biases zero, the rest normal with deviation 0.02; a sparse file's are holes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset, width = 0, np.dtype(size.dtype).itemsize
    for name, shape in shapes(size).items():
        length = int(np.prod(shape)) * width
        header[name] = {"dtype": NAMES[size.dtype], "shape": shape, "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    random = np.random.default_rng(seed)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        if size.sparse:
            out.truncate(8 + len(text) + offset)
            return
        for name, shape in shapes(size).items():
            if name.endswith("bias"):
                values = np.zeros(shape, np.float32)
            elif "norm" in name:
                values = np.ones(shape, np.float32)
            else:
                values = random.standard_normal(shape, np.float32) * np.float32(0.02)
            out.write(values.astype(size.dtype).tobytes())


def write_tokenizer(size: Size, folder: Path) -> None:
    """A word-level tokenizer: `w0`, `w1`, ... are words of one token."""
    words = [*SPECIAL, *(f"w{number}" for number in range(size.vocab - len(SPECIAL)))]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": VISION["image_size"]},
        "crop_size": {"height": VISION["image_size"], "width": VISION["image_size"]},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))


def make(name: str, folder: Path, seed: int = 0) -> Path:
    """Writes the checkpoint of that size; an existing one is left as it is."""
    size = SIZES[name]
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(size, seed, folder / "model.safetensors")
        write_tokenizer(size, folder)
        (folder / "config.json").write_text(json.dumps(config(size), indent=2))
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make(arguments.size, arguments.folder, arguments.seed)
