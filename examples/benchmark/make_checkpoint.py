"""Writes LLaVA checkpoints with real sizes and random weights, by seed, for timings. They cannot answer questions.

python examples/benchmark/make_checkpoint.py 150m out/bench/150m

`7b` has the sizes of LLaVA-1.5-7B, `next-mistral-7b` those of LLaVA-1.6-Mistral-7B, and `onevision-0.5b` those of
LLaVA-OneVision-Qwen2-0.5B. The weights of the first two are holes in a sparse file. `7b-random` is `7b` with weights
drawn by seed, 14 GB in shards; it is written in pieces and takes little memory.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from vlkv_export.weights.header import lay_out

IMAGE = "<image>"
SPECIAL = ("<unk>", "<s>", "</s>", IMAGE)
NEXT_GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
NAMES = {"float32": "F32", "float16": "F16"}
SHARD = 2 << 30
"""The most bytes of a shard, unless one tensor is larger."""
PIECE = 1 << 22
"""Weights drawn at a time."""


@dataclass(frozen=True)
class Size:
    """The sizes of a checkpoint.

    `dtype` is the dtype of its weights. A sparse one holds zeros that take no disk space; a sharded one lies in several
    files.
    """

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
    sharded: bool = False
    kind: str = "llava"
    text: str = "llama"
    image_size: int = 336
    vision_heads: int = 0

    @property
    def siglip(self) -> bool:
        """Whether the tower is SigLIP rather than CLIP."""
        return self.kind == "llava_onevision"

    @property
    def vision(self) -> dict[str, object]:
        """Returns `vision_config`."""
        return {
            "model_type": "siglip_vision_model" if self.siglip else "clip_vision_model",
            "image_size": self.image_size,
            "patch_size": 14,
            "hidden_size": self.vision_hidden,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": self.vision_heads or self.vision_hidden // 64,
            "intermediate_size": self.vision_intermediate,
        }


SIZES = {
    "20m": Size(320, 6, 5, 5, 864, 16000, 128, 2, 256),
    "150m": Size(768, 12, 12, 4, 2048, 32000, 256, 4, 512),
    "7b": Size(4096, 32, 32, 32, 11008, 32064, 1024, 24, 4096, 4096, "float16", sparse=True),
    "next-mistral-7b": Size(
        4096, 32, 32, 8, 14336, 32064, 1024, 24, 4096, 32768, "float16", True, False, "llava_next", "mistral"
    ),
    "onevision-0.5b": Size(
        896,
        24,
        14,
        2,
        4864,
        152000,
        1152,
        26,
        4304,
        32768,
        "float16",
        False,
        False,
        "llava_onevision",
        "qwen2",
        384,
        16,
    ),
}
SIZES["7b-random"] = replace(SIZES["7b"], sparse=False, sharded=True)
CLASSES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
}


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all tensors by the names that transformers uses."""
    hidden, vision = size.hidden, size.vision_hidden
    kv = size.kv_heads * hidden // size.heads
    patches = (size.image_size // 14) ** 2
    embeddings, classes = "model.vision_tower.vision_model.embeddings", 0 if size.siglip else 1
    found: dict[str, tuple[int, ...]] = {
        "model.language_model.embed_tokens.weight": (size.vocab, hidden),
        "model.language_model.norm.weight": (hidden,),
        f"{embeddings}.patch_embedding.weight": (vision, 3, 14, 14),
        f"{embeddings}.position_embedding.weight": (patches + classes, vision),
    }
    if size.siglip:
        found[f"{embeddings}.patch_embedding.bias"] = (vision,)
    else:
        found["lm_head.weight"] = (size.vocab, hidden)
        found[f"{embeddings}.class_embedding"] = (vision,)
        for part in ("weight", "bias"):
            found[f"model.vision_tower.vision_model.pre_layrnorm.{part}"] = (vision,)
    if size.kind != "llava":
        found["model.image_newline"] = (hidden,)
    for number, (rows, columns) in enumerate(((hidden, vision), (hidden, hidden)), 1):
        found[f"model.multi_modal_projector.linear_{number}.weight"] = (rows, columns)
        found[f"model.multi_modal_projector.linear_{number}.bias"] = (rows,)
    for layer in range(size.layers):
        name = f"model.language_model.layers.{layer}"
        for part, rows in zip("qkvo", (hidden, kv, kv, hidden), strict=True):
            found[f"{name}.self_attn.{part}_proj.weight"] = (rows, hidden)
            if size.text == "qwen2" and part != "o":
                found[f"{name}.self_attn.{part}_proj.bias"] = (rows,)
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
    """Returns `config.json`."""
    text = {
        "model_type": size.text,
        "sliding_window": None,
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "intermediate_size": size.intermediate,
        "vocab_size": size.vocab,
        "max_position_embeddings": size.positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": size.siglip,
    }
    return {
        "architectures": [CLASSES[size.kind]],
        "model_type": size.kind,
        "image_token_index": SPECIAL.index(IMAGE),
        "text_config": text,
        "vision_config": size.vision,
        "vision_feature_layer": -1 if size.siglip else -2,
        "vision_feature_select_strategy": "full" if size.siglip else "default",
        "tie_word_embeddings": size.siglip,
        "torch_dtype": size.dtype,
        "eos_token_id": SPECIAL.index("</s>"),
        "bos_token_id": SPECIAL.index("<s>"),
    }


def write_weights(size: Size, seed: int, folder: Path) -> None:
    """Writes the weight files: norms are one, biases zero, all else is normal with deviation 0.02.

    A sparse file has holes.
    """
    found = list(shards(size))
    random = np.random.default_rng(seed)
    index: dict[str, str] = {}
    for number, names in enumerate(found, 1):
        many = f"model-{number:05}-of-{len(found):05}.safetensors"
        path = folder / (many if size.sharded else "model.safetensors")
        index |= dict.fromkeys(names, path.name)
        _write_shard(size, names, random, path)
    if size.sharded:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}, indent=2))


def shards(size: Size) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yields the shapes of each file's tensors by name: all, or about `SHARD` bytes of them."""
    width, names, held = np.dtype(size.dtype).itemsize, {}, 0
    for name, shape in shapes(size).items():
        length = int(np.prod(shape)) * width
        if size.sharded and names and held + length > SHARD:
            yield names
            names, held = {}, 0
        names[name], held = shape, held + length
    yield names


def _write_shard(
    size: Size, names: dict[str, tuple[int, ...]], random: np.random.Generator, path: Path
) -> None:
    width = np.dtype(size.dtype).itemsize
    header, places = lay_out(
        (name, NAMES[size.dtype], shape, int(np.prod(shape)) * width) for name, shape in names.items()
    )
    with path.open("wb") as out:
        out.write(header)
        if size.sparse:
            out.truncate(max(place.offset + place.length for place in places.values()))
            return
        for name, shape in names.items():
            count = int(np.prod(shape))
            for begin in range(0, count, PIECE):
                part = min(PIECE, count - begin)
                if name.endswith("bias"):
                    values = np.zeros(part, np.float32)
                elif "norm" in name:
                    values = np.ones(part, np.float32)
                else:
                    values = random.standard_normal(part, np.float32) * np.float32(0.02)
                out.write(values.astype(size.dtype).tobytes())


def write_tokenizer(size: Size, folder: Path) -> None:
    """Writes a word-level tokenizer. `w0`, `w1`, ... are words of one token."""
    words = [*SPECIAL, *(f"w{number}" for number in range(size.vocab - len(SPECIAL)))]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    side, square = size.image_size, {"height": size.image_size, "width": size.image_size}
    clip = {"size": {"shortest_edge": side}, "crop_size": square}
    processor = {
        "llava": {"image_processor_type": "CLIPImageProcessor"} | clip,
        "llava_next": {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": NEXT_GRIDS}
        | clip,
        "llava_onevision": {"image_processor_type": "LlavaOnevisionImageProcessor", "size": square},
    }[size.kind]
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))


def make(name: str, folder: Path, seed: int = 0) -> Path:
    """Writes the checkpoint of a size. An existing one is not changed."""
    size = SIZES[name]
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(size, seed, folder)
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
