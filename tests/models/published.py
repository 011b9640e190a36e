"""Configurations of published checkpoints, field for field, with small sizes: what each leaves out is left out here.

    folder = published.build("llava-1.5-7b-hf", tmp_path)

Weights are random, under the tensor names of llava-hf's files. Sizes keep what matters of the original's: heads to
key-value heads, an image size that is no multiple of the patches (SigLIP's 384 of 14), tied embeddings.
"""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

from models import families, generations

CLIP_TOWER = {
    "hidden_size": 32,
    "image_size": 42,
    "intermediate_size": 48,
    "model_type": "clip_vision_model",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "patch_size": 14,
    "projection_dim": 24,
    "vocab_size": 64,
}
SIGLIP_TOWER = {
    "hidden_size": 36,
    "image_size": 45,
    "intermediate_size": 50,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "patch_size": 14,
    "vision_use_head": False,
}
CLIP_PROCESSOR = {
    "crop_size": {"height": 42, "width": 42},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "LlavaProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 42},
}
SIGLIP_PROCESSOR = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "LlavaProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 45, "width": 45},
}
PINPOINTS = [[42, 84], [84, 42], [84, 84], [126, 42], [42, 126]]
NEXT_PROCESSOR = CLIP_PROCESSOR | {
    "aspect_ratio_setting": "anyres",
    "do_pad": True,
    "image_grid_pinpoints": PINPOINTS,
    "image_processor_type": "LlavaNextImageProcessor",
    "processor_class": "LlavaNextProcessor",
}
GRIDS = [[45 * rows, 45 * columns] for rows in range(1, 7) for columns in range(1, 7)]
ONEVISION_PROCESSOR = SIGLIP_PROCESSOR | {
    "do_pad": True,
    "image_grid_pinpoints": GRIDS,
    "image_processor_type": "LlavaOnevisionImageProcessor",
    "processor_class": "LlavaOnevisionProcessor",
}
PIXTRAL_PROCESSOR = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "PixtralImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "patch_size": {"height": 14, "width": 14},
    "processor_class": "PixtralProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 150},
}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 64,
}
VICUNA = SIZES | {"max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05}
MISTRAL = SIZES | {
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
}
QWEN2 = SIZES | {
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "max_window_layers": 1,
    "model_type": "qwen2",
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "use_sliding_window": False,
}
LLAMA3 = SIZES | {
    "bos_token_id": 1,
    "eos_token_id": [2, 25],
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
}


def _llava(text: dict[str, Any], vision: dict[str, Any] = CLIP_TOWER, **config: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 4,
        "model_type": "llava",
        "pad_token_id": 3,
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vision_config": vision,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    } | config


def _next(text: dict[str, Any], **config: Any) -> dict[str, Any]:
    found = {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "image_grid_pinpoints": PINPOINTS,
        "model_type": "llava_next",
        "use_image_newline_parameter": True,
    }
    return _llava(text) | found | config


def _onevision(text: dict[str, Any], **config: Any) -> dict[str, Any]:
    found = {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "image_grid_pinpoints": GRIDS,
        "model_type": "llava_onevision",
        "use_image_newline_parameter": True,
        "video_token_index": 5,
        "vision_aspect_ratio": "anyres_max_9",
    }
    return _llava(text, SIGLIP_TOWER, **FULL) | found | config


FULL = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llava-1.5-7b-hf": (_llava(VICUNA), CLIP_PROCESSOR),
    "bakLlava-v1-hf": (_llava(MISTRAL | {"sliding_window": 4096}), CLIP_PROCESSOR),
    "xtuner/llava-llama-3-8b-v1_1-transformers": (
        _llava(VICUNA | {"num_key_value_heads": 2, "rope_theta": 500000.0, "max_position_embeddings": 8192}),
        CLIP_PROCESSOR | {"do_pad": False},
    ),
    "xtuner/llava-phi-3-mini-hf": (
        _llava(VICUNA | {"eos_token_id": 2, "pad_token_id": 2, "sliding_window": 2047}),
        CLIP_PROCESSOR,
    ),
    "phi-3-mini": (
        _llava(VICUNA | {"model_type": "phi3", "pad_token_id": 3, "sliding_window": 2047}),
        CLIP_PROCESSOR,
    ),
    "llava-interleave-qwen-0.5b-hf": (
        _llava(QWEN2 | {"tie_word_embeddings": True}, SIGLIP_TOWER, **FULL),
        SIGLIP_PROCESSOR,
    ),
    "llava-interleave-qwen-7b-hf": (_llava(QWEN2, SIGLIP_TOWER, **FULL), SIGLIP_PROCESSOR),
    "llama-joycaption-beta-one-hf-llava": (
        _llava(LLAMA3, SIGLIP_TOWER, vision_feature_select_strategy="full", image_seq_length=9),
        SIGLIP_PROCESSOR,
    ),
    "Intel/llava-gemma-2b": (
        _llava(
            SIZES
            | {
                "bos_token_id": 2,
                "eos_token_id": 1,
                "head_dim": 32,
                "hidden_act": "gelu_pytorch_tanh",
                "hidden_activation": None,
                "max_position_embeddings": 8192,
                "model_type": "gemma",
                "num_key_value_heads": 1,
                "pad_token_id": 0,
                "rms_norm_eps": 1e-06,
                "rope_theta": 10000.0,
            },
            tie_word_embeddings=True,
        ),
        CLIP_PROCESSOR,
    ),
    "pixtral-12b": (
        _llava(
            MISTRAL
            | {
                "head_dim": 24,
                "max_position_embeddings": 131072,
                "rope_theta": 1000000000.0,
                "sliding_window": None,
            },
            {
                "head_dim": 8,
                "hidden_act": "silu",
                "hidden_size": 32,
                "image_size": 150,
                "intermediate_size": 48,
                "model_type": "pixtral",
                "num_attention_heads": 4,
                "num_hidden_layers": 3,
                "patch_size": 14,
                "rope_theta": 10000.0,
            },
            **FULL,
        ),
        PIXTRAL_PROCESSOR,
    ),
    "llava-v1.6-mistral-7b-hf": (
        _next(MISTRAL | {"rope_theta": 1000000.0, "sliding_window": None}),
        NEXT_PROCESSOR,
    ),
    "llava-v1.6-vicuna-7b-hf": (_next(VICUNA), NEXT_PROCESSOR),
    "llava-v1.6-34b-hf": (
        _next(
            VICUNA
            | {"num_key_value_heads": 1, "rope_theta": 5000000.0, "pad_token_id": 0, "eos_token_id": 7},
        ),
        NEXT_PROCESSOR,
    ),
    "llama3-llava-next-8b-hf": (
        _next(VICUNA | {"num_key_value_heads": 2, "rope_theta": 500000.0, "max_position_embeddings": 8192}),
        NEXT_PROCESSOR,
    ),
    "llava-next-72b-hf": (_next(QWEN2 | {"num_key_value_heads": 4}), NEXT_PROCESSOR),
    "llava-onevision-qwen2-0.5b-ov-hf": (
        _onevision(QWEN2 | {"tie_word_embeddings": True, "use_cache": True}, tie_word_embeddings=True),
        ONEVISION_PROCESSOR,
    ),
    "llava-onevision-qwen2-7b-ov-hf": (_onevision(QWEN2), ONEVISION_PROCESSOR),
    "llava-onevision-qwen2-72b-ov-hf": (_onevision(QWEN2 | {"num_key_value_heads": 1}), ONEVISION_PROCESSOR),
    "vip-llava-7b-hf": (
        {
            key: value
            for key, value in _llava(VICUNA).items()
            if key not in ("vision_feature_layer", "vision_feature_select_strategy")
        }
        | {
            "architectures": ["VipLlavaForConditionalGeneration"],
            "model_type": "vipllava",
            "projector_layernorm_eps": 1e-05,
            "vision_feature_layers": [-2, -3, -4, -5, 3],
        },
        CLIP_PROCESSOR,
    ),
}
"""`config.json` and `preprocessor_config.json`, by the name of the repository."""
CLASSES = {
    "CLIPImageProcessor": "clip.image_processing_pil_clip",
    "SiglipImageProcessor": "siglip.image_processing_pil_siglip",
    "PixtralImageProcessor": "pixtral.image_processing_pil_pixtral",
    "LlavaNextImageProcessor": "llava_next.image_processing_pil_llava_next",
    "LlavaOnevisionImageProcessor": "llava_onevision.image_processing_pil_llava_onevision",
}


def _processor(values: dict[str, Any]) -> Any:
    import importlib

    kind = values["image_processor_type"]
    module = importlib.import_module(f"transformers.models.{CLASSES[kind]}")
    given = {
        key: value for key, value in values.items() if key not in ("image_processor_type", "processor_class")
    }
    return getattr(module, f"{kind}Pil")(**given)


def family(name: str) -> families.Family:
    """The line that `families.Reference` reads."""
    config, processor = PUBLISHED[name]
    vision = (
        families.PIXTRAL if config["vision_config"]["model_type"] == "pixtral" else config["vision_config"]
    )
    return families.Family(
        config["architectures"][0], vision, config["text_config"], partial(_processor, processor)
    )


def build(name: str, folder: Path) -> Path:
    """Write the checkpoint into `folder` and return it."""
    import transformers

    config, processor = PUBLISHED[name]
    kind = getattr(transformers, config["architectures"][0])
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = kind.config_class.from_dict(json.loads(json.dumps(config)))
        torch.manual_seed(11)
        model = kind(made)
        families.fill(model, 11)
        if made.tie_word_embeddings or made.text_config.tie_word_embeddings:
            model.tie_weights()
        model.to(torch.float16).eval().save_pretrained(folder, max_shard_size="200KB")
    generations.rename(folder, "2024, pixtral" if processor is PIXTRAL_PROCESSOR else "2024")
    text = config["text_config"]
    generation = {"bos_token_id": 1, "eos_token_id": text.get("eos_token_id", 2), "pad_token_id": 3}
    files = {"config": config, "preprocessor_config": processor, "generation_config": generation}
    for file, values in files.items():
        (folder / f"{file}.json").write_text(json.dumps(values))
    if processor is PIXTRAL_PROCESSOR:
        ends = {"image_break_token": families.BREAKS[0], "image_end_token": families.BREAKS[1]}
        (folder / "processor_config.json").write_text(
            json.dumps({"patch_size": 14, "image_token": "<image>", **ends})
        )
    families.tokenizer().save_pretrained(folder)
    return folder
