"""Tiny random checkpoints of every family in a table, one row each, written by transformers like published ones.

    from models import families
    folder = families.build("next-mistral", tmp_path / "next-mistral")

The tower's tiles have 3 x 3 tokens. `PICTURES` has pictures to ask about.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from models import tiny

TILE, PATCH = 42, 14
SIZES = {
    "wide": (200, 60),
    "tall": (41, 150),
    "dot": (1, 1),
    "large": (500, 420),
    "exact": (84, 84),
    "odd": (97, 61),
    "sliver": (300, 2),
}
"""Width and height; `large` is beyond every grid, `exact` fits one."""
PINPOINTS = [[42, 84], [84, 42], [84, 84], [126, 42], [42, 126]]
LARGE_PINPOINTS = [[2 * side for side in sides] for sides in PINPOINTS]
CLIP_LEVELS = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
OWN = {"return_legacy_image_output": False, "input_data_format": "channels_last"}
"""What VideoLlava's image processor is told; it takes a picture of one pixel for one of a channel."""
GRIDS = [[TILE * rows, TILE * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]
PIXTRAL = {"model_type": "pixtral", "image_size": 150, "rope_parameters": {"rope_theta": 500.0}}
BREAKS = ("w18", "w19")
"""The tokens that end a row of a Pixtral picture, and the picture."""
VIDEO = "w20"
"""What stands for a video."""
CLIP = {"model_type": "clip_vision_model"}
SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": tiny.VOCAB,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}


@dataclass(frozen=True)
class Family:
    """One row of the table.

    `model` is the class of transformers, `processor` makes its image processor, `config` are fields of the whole
    configuration, `generation` of `generation_config.json`. Of those that take videos, `frames` is the configuration
    of the video processor but for its sizes, and `frame` makes the image processor that does the same without
    torchvision. `tile` is the tower's size.
    """

    model: str
    vision: dict[str, Any]
    text: dict[str, Any]
    processor: Callable[[], Any]
    config: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    generation: dict[str, Any] = field(default_factory=dict)
    frames: dict[str, Any] = field(default_factory=dict)
    frame: Callable[[], Any] | None = None
    tile: int = TILE


def _clip() -> Any:
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE})


def _clip_large() -> Any:
    from transformers import CLIPImageProcessorPil

    sizes = {"size": {"shortest_edge": 2 * TILE}, "crop_size": {"height": 2 * TILE, "width": 2 * TILE}}
    return CLIPImageProcessorPil(**sizes)


def _video_llava() -> Any:
    from transformers import VideoLlavaImageProcessor

    return VideoLlavaImageProcessor(size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE})


def _onevision_frame() -> Any:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    levels = {"image_mean": CLIP_LEVELS[0], "image_std": CLIP_LEVELS[1], "resample": 3}
    return SiglipImageProcessorPil(size={"height": TILE, "width": TILE}, **levels)


def _siglip() -> Any:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    return SiglipImageProcessorPil(size={"height": TILE, "width": TILE})


def _pixtral() -> Any:
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    return PixtralImageProcessorPil(size={"longest_edge": 150}, patch_size={"height": PATCH, "width": PATCH})


def _next() -> Any:
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    sizes = {"size": {"shortest_edge": TILE}, "crop_size": {"height": TILE, "width": TILE}}
    return LlavaNextImageProcessorPil(**sizes, image_grid_pinpoints=PINPOINTS)


def _next_large() -> Any:
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    sizes = {"size": {"shortest_edge": 2 * TILE}, "crop_size": {"height": 2 * TILE, "width": 2 * TILE}}
    return LlavaNextImageProcessorPil(**sizes, image_grid_pinpoints=LARGE_PINPOINTS)


def _onevision() -> Any:
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    return LlavaOnevisionImageProcessorPil(size={"height": TILE, "width": TILE}, image_grid_pinpoints=GRIDS)


NEXT = {"image_grid_pinpoints": PINPOINTS}
FULL = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
LARGE = {"size": {"shortest_edge": 2 * TILE}, "crop_size": {"height": 2 * TILE, "width": 2 * TILE}}
ONEVISION = {**FULL, "image_grid_pinpoints": GRIDS, "vision_aspect_ratio": "anyres_max_3"}

FAMILIES = {
    "llava-siglip-qwen2": Family(
        "LlavaForConditionalGeneration", SIGLIP, {"model_type": "qwen2"}, _siglip, FULL
    ),
    "llava-clip-gemma": Family(
        "LlavaForConditionalGeneration", CLIP, {"model_type": "gemma", "head_dim": 32}, _clip, {}, "bfloat16"
    ),
    "llava-clip-qwen3": Family(
        "LlavaForConditionalGeneration",
        CLIP,
        {"model_type": "qwen3", "head_dim": 36},
        _clip,
        generation={
            "repetition_penalty": 1.3,
            "no_repeat_ngram_size": 3,
            "min_new_tokens": 5,
            "suppress_tokens": [7, 30],
            "begin_suppress_tokens": [9],
            "bad_words_ids": [[12], [14, 20]],
            "eos_token_id": [2, 25],
        },
    ),
    "llava-clip-phi3": Family(
        "LlavaForConditionalGeneration",
        CLIP,
        {
            "model_type": "phi3",
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.1, 1.25, 1.5, 1.6, 1.7, 1.8, 2.0],
                "long_factor": [2.0] * 8,
            },
        },
        _clip,
        dtype="bfloat16",
    ),
    "llava-pixtral-mistral": Family(
        "LlavaForConditionalGeneration", PIXTRAL, {"model_type": "mistral", "head_dim": 16}, _pixtral, FULL
    ),
    "llava-clip-mistral-window": Family(
        "LlavaForConditionalGeneration", CLIP, {"model_type": "mistral", "sliding_window": 16}, _clip
    ),
    "next-siglip-qwen2-window": Family(
        "LlavaNextForConditionalGeneration",
        SIGLIP,
        {
            "model_type": "qwen2",
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 40,
            "max_window_layers": 1,
        },
        _next,
        NEXT | FULL,
    ),
    "llava-clip-qwen3-window": Family(
        "LlavaForConditionalGeneration",
        CLIP,
        {
            "model_type": "qwen3",
            "head_dim": 20,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 21,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        _clip,
    ),
    "vipllava": Family(
        "VipLlavaForConditionalGeneration",
        CLIP,
        {"model_type": "llama"},
        _clip,
        {"vision_feature_layer": [-2, -1, 1, 0, 2]},
    ),
    "next-mistral": Family("LlavaNextForConditionalGeneration", CLIP, {"model_type": "mistral"}, _next, NEXT),
    "next-llama": Family(
        "LlavaNextForConditionalGeneration", CLIP, {"model_type": "llama"}, _next, NEXT, "bfloat16"
    ),
    "next-video": Family(
        "LlavaNextVideoForConditionalGeneration",
        CLIP,
        {"model_type": "llama", "head_dim": 20},
        _next_large,
        {"image_grid_pinpoints": LARGE_PINPOINTS},
        frames={"video_processor_type": "LlavaNextVideoVideoProcessor"} | LARGE,
        frame=_clip_large,
        tile=2 * TILE,
    ),
    "video-llava": Family(
        "VideoLlavaForConditionalGeneration",
        CLIP,
        {"model_type": "llama"},
        _video_llava,
        frames={
            "video_processor_type": "VideoLlavaVideoProcessor",
            "size": {"shortest_edge": TILE},
            "crop_size": {"height": TILE, "width": TILE},
        },
        frame=_clip,
    ),
    "next-siglip-qwen2": Family(
        "LlavaNextForConditionalGeneration", SIGLIP, {"model_type": "qwen2"}, _next, NEXT | FULL
    ),
    "onevision": Family(
        "LlavaOnevisionForConditionalGeneration",
        SIGLIP,
        {"model_type": "qwen2", "tie_word_embeddings": True},
        _onevision,
        ONEVISION,
        frames={
            "video_processor_type": "LlavaOnevisionVideoProcessor",
            "size": {"height": TILE, "width": TILE},
        },
        frame=_onevision_frame,
    ),
}
WITH_VIDEOS = [name for name, family in FAMILIES.items() if family.frame is not None]
POOLS = {
    f"next-video-{mode}": replace(
        FAMILIES["next-video"],
        text={"model_type": "llama"},
        config=FAMILIES["next-video"].config | {"spatial_pool_mode": mode, "spatial_pool_stride": stride},
    )
    for mode, stride in (("average", 2), ("max", 4), ("conv", 3))
}
"""Ways to pool a frame, with heads that TensorRT takes too; these are compared by their features alone."""


CHAT = tiny.CHAT.replace(
    "{% if part['type'] == 'image' %}",
    "{% if part['type'] == 'video' %}" + VIDEO + "{% elif part['type'] == 'image' %}",
)


def picture(name: str) -> Image.Image:
    """Returns coloured noise, enlarged to the named size."""
    noise = np.random.default_rng(len(name)).integers(0, 256, (9, 7, 3), np.uint8)
    return Image.fromarray(noise).resize(SIZES[name], Image.Resampling.BICUBIC)


def build(name: str, folder: Path) -> Path:
    """Writes the checkpoint `name` into `folder`, unless it is there, and returns the folder."""
    if (folder / ".done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _write((FAMILIES | POOLS)[name], folder)
    (folder / ".done").touch()
    return folder


def _write(family: Family, folder: Path) -> None:
    import transformers

    kind = getattr(transformers, family.model)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision |= {"image_size": family.tile, "patch_size": PATCH} | family.vision
    config = kind.config_class(
        text_config=TEXT | family.text,
        vision_config=vision,
        image_token_index=tiny.SPECIAL.index("<image>"),
        **(
            family.config
            | ({"video_token_index": tokenizer().convert_tokens_to_ids(VIDEO)} if family.frames else {})
        ),
    )
    torch.manual_seed(7)
    model = kind(config)
    fill(model, 7)
    if config.tie_word_embeddings:
        model.tie_weights()
    model.to(getattr(torch, family.dtype)).eval().save_pretrained(folder)
    settings = json.loads((folder / "generation_config.json").read_text()) | family.generation
    (folder / "generation_config.json").write_text(json.dumps(settings))
    family.processor().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    if family.vision is PIXTRAL:
        ends = {"image_break_token": BREAKS[0], "image_end_token": BREAKS[1]}
        (folder / "processor_config.json").write_text(json.dumps({"patch_size": PATCH, **ends}))
    if family.frames:
        (folder / "video_preprocessor_config.json").write_text(json.dumps(family.frames))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT}))


def tokenizer() -> Any:
    """The tiny shapes' tokenizer, in which the texts of `BREAKS` and `VIDEO` are added tokens."""
    from tokenizers import AddedToken

    found = tiny.tokenizer()
    found.add_tokens([AddedToken(text, special=True) for text in (*BREAKS, VIDEO)])
    return found


def fill(model: Any, seed: int) -> None:
    """Fills in random weights whose logits distinguish tokens: norms near one, embeddings of one half, unit gain."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = "norm" in key and key.endswith("weight")
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            embedding = "embed" in key and "patch" not in key
            parameter.copy_(
                1 + 0.1 * noise if norm else 0.5 * noise if embedding else 1.2 * noise / fan_in**0.5
            )


class Reference:
    """A family's checkpoint in transformers, eager and float32, without the processors that need torchvision.

    A prompt's image tokens are expanded by the number of features that the model itself makes of each picture.
    """

    def __init__(self, name: str, folder: Path) -> None:
        import transformers

        self.family = (FAMILIES | POOLS)[name]
        kind = getattr(transformers, self.family.model)
        self.model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        self.processor = self.family.processor()
        self.tokenizer = tokenizer()

    def pictures(self, images: list[Image.Image]) -> dict[str, Any]:
        """Returns the image processor's tensors for the pictures of one prompt."""
        nested = [images] if "onevision" in type(self.processor).__module__ else images
        legacy = OWN if "video_llava" in type(self.processor).__module__ else {}
        found = dict(self.processor(nested, return_tensors="pt", **legacy))
        if "batch_num_images" in found:
            found["batch_num_images"] = torch.as_tensor(found["batch_num_images"])
        return found

    def features(self, inputs: dict[str, Any]) -> list[np.ndarray]:
        """Returns the features `[T, hidden]` of each picture."""
        with torch.no_grad():
            packed = self.model.get_image_features(**inputs, return_dict=True).pooler_output
        return [each.double().numpy() for each in packed]

    def clips(self, videos: list[list[Image.Image]]) -> dict[str, Any]:
        """Pixel values of videos of equally many frames; a video processor does the same to each frame."""
        assert self.family.frame is not None
        processor = self.family.frame()
        frames = [processor(frames, return_tensors="pt")["pixel_values"] for frames in videos]
        return {"pixel_values_videos": torch.stack(frames)}

    def video_features(self, inputs: dict[str, Any]) -> np.ndarray:
        """Features `[videos, T, hidden]`."""
        kind = self.model if hasattr(self.model, "get_video_features") else self.model.model
        with torch.no_grad():
            packed = kind.get_video_features(**inputs, return_dict=True).pooler_output
        count = len(inputs["pixel_values_videos"])
        return packed.reshape(count, -1, packed.shape[-1]).double().numpy()

    def inputs(
        self, text: str, images: list[Image.Image], videos: list[list[Image.Image]] | None = None
    ) -> dict[str, Any]:
        """The model's inputs for a text that holds one `<image>` for each picture, one `VIDEO` for each video."""
        given = self.pictures(images) if images else {}
        ids = self.tokenizer(text)["input_ids"]
        image = self.model.config.image_token_id
        pictures = [[image] * len(each) for each in self.features(given)] if images else []
        shown: list[list[int]] = []
        if videos:
            clips = self.clips(videos)
            shown = [[self.model.config.video_token_id] * len(each) for each in self.video_features(clips)]
            given |= clips
        if "image_sizes" in given and self.family.vision is PIXTRAL:
            pictures = [self.rows(image, *size) for size in (given["image_sizes"] // PATCH).tolist()]
        whole: list[int] = []
        video = self.model.config.video_token_id if videos else None
        for token in ids:
            whole += pictures.pop(0) if token == image else shown.pop(0) if token == video else [token]
        return given | {"input_ids": torch.tensor([whole]), "attention_mask": torch.ones(1, len(whole))}

    def rows(self, image: int, rows: int, columns: int) -> list[int]:
        """Returns a picture's tokens as `PixtralProcessor.replace_image_token` makes them."""
        row_end, end = self.tokenizer.convert_tokens_to_ids(list(BREAKS))
        return [*(([image] * columns + [row_end]) * rows)[:-1], end]

    def generate(self, inputs: dict[str, Any], tokens: int) -> list[int]:
        """Returns the greedy tokens of transformers' own loop."""
        with torch.no_grad():
            out = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=3)
        return out[0, inputs["input_ids"].shape[1] :].tolist()

    def forced(self, inputs: dict[str, Any], tokens: Any) -> np.ndarray:
        """Returns logits `[1 + T, V]` of the prompt's last token and after each given token."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config.get_text_config())
        with torch.no_grad():
            out = self.model(**inputs, past_key_values=cache, use_cache=True)
            logits = [out.logits[0, -1]]
            for token in tokens:
                step = torch.tensor([[int(token)]])
                out = self.model(input_ids=step, past_key_values=cache, use_cache=True)
                logits.append(out.logits[0, -1])
        return torch.stack(logits).double().numpy()
