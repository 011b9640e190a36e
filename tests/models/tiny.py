"""Tiny random LLaVA checkpoints on disk, in both generations of the format, for tests.

    from models import tiny
    folder = tiny.build("llama", tmp_path / "llama")

They are built with transformers and torch from fixed seeds. Nothing is downloaded.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models import generations

PATCH = 14
WORDS = (
    "what",
    "is",
    "the",
    "total",
    "name",
    "date",
    "city",
    "of",
    "form",
    "answer",
    "yes",
    "no",
    *"abcdefgh",
)
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
NAMES: dict[str, Any] = {
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "extra_special_tokens": {"image_token": "<image>"},
}
"""What the special tokens are, as transformers takes it."""
VOCAB = 64
CHAT = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """The definition of a checkpoint: fields of its configurations, and how it is written."""

    seed: int
    text: dict[str, Any]
    vision: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    style: str = "saved"
    byte_level: bool = False


_SHAPES = {
    "llama": Shape(1, {"model_type": "llama", "num_key_value_heads": 4}),
    "llama-gqa-tied": Shape(
        2,
        {
            "model_type": "llama",
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        config={"tie_word_embeddings": True, "vision_feature_layer": -1},
    ),
    "mistral": Shape(
        3,
        {
            "model_type": "mistral",
            "num_key_value_heads": 2,
            "head_dim": 24,
            "sliding_window": 256,
            "rms_norm_eps": 1e-5,
        },
        vision={"image_size": 56, "hidden_act": "gelu"},
        config={"projector_hidden_act": "gelu_pytorch_tanh"},
        style="2025",
    ),
    "llama-biases": Shape(
        4,
        {
            "model_type": "llama",
            "num_key_value_heads": 4,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        },
        vision={"image_size": 42},
        config={
            "vision_feature_layer": [-2, 1, -1],
            "vision_feature_select_strategy": "full",
            "multimodal_projector_bias": False,
        },
        processor={"size": {"height": 42, "width": 42}, "do_center_crop": False},
        dtype="bfloat16",
    ),
    "llama-old": Shape(5, {"model_type": "llama", "num_key_value_heads": 2}, dtype="float16", style="2024"),
}
SHAPES = tuple(_SHAPES)
"""The shapes that differ in what they compute."""
BYTES = "bytes"
"""The name of a shape whose tokens are bytes, so that it can write any text."""
_SHAPES[BYTES] = Shape(
    6, {"model_type": "llama", "num_key_value_heads": 2, "vocab_size": 264}, byte_level=True
)


def build(name: str, folder: Path) -> Path:
    """Writes the checkpoint `name` into `folder`, unless it is there, and returns the folder."""
    if (folder / ".done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    shape = _SHAPES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _write(shape, folder)
        if shape.style == "2024":
            generations.make_2024(folder)
        elif shape.style == "2025":
            generations.make_2025(folder)
    (folder / ".done").touch()
    return folder


def config(name: str) -> Any:
    """Returns the transformers configuration of the checkpoint `name`."""
    from transformers import LlavaConfig

    shape = _SHAPES[name]
    text = {
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": PATCH,
    }
    vision |= shape.vision
    patches = (vision["image_size"] // PATCH) ** 2
    strategy = shape.config.get("vision_feature_select_strategy", "default")
    return LlavaConfig(
        text_config=text | shape.text,
        vision_config=vision,
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=patches + (strategy == "full"),
        **shape.config,
    )


def tokenizer() -> Any:
    """Returns a fast word-level tokenizer of `VOCAB` tokens with `<image>`."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, "\n", ":", "?", "user", "assistant", *WORDS]
    words += [f"w{index}" for index in range(VOCAB - len(words))]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Whitespace()]
    )
    inner.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, **NAMES)


def byte_tokenizer() -> Any:
    """Returns a fast byte-level BPE tokenizer without merges, with the special tokens of `tokenizer`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, **NAMES)


def _write(shape: Shape, folder: Path) -> None:
    import torch
    from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration, LlavaProcessor

    name = next(key for key, value in _SHAPES.items() if value is shape)
    model_config = config(name)
    generator = torch.Generator().manual_seed(shape.seed)
    model = LlavaForConditionalGeneration(model_config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = "norm" in key and key.endswith("weight")
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            embedding = "embed" in key and "patch" not in key
            parameter.copy_(
                1 + 0.1 * noise if norm else 0.5 * noise if embedding else 1.2 * noise / fan_in**0.5
            )
    if model_config.tie_word_embeddings:
        model.tie_weights()
    model = model.to(getattr(torch, shape.dtype)).eval()
    model.save_pretrained(folder, max_shard_size="150KB" if shape.style == "2024" else "1GB")
    size = model_config.vision_config.image_size
    LlavaProcessor(
        CLIPImageProcessorPil(
            **(
                {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
                | shape.processor
            )
        ),
        byte_tokenizer() if shape.byte_level else tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy=model_config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)
