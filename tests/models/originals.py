"""Tiny random checkpoints as the original LLaVA's code wrote them, and the same weights in transformers' classes.

    made = originals.build("v1.5", tmp_path)
    read_checkpoint(made.folder, made.tower)

What the original code does with text and pictures is written here once more, from its `conversation.py` and
`mm_utils.py`: the oracle of the tests.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from models import families, tiny

IMAGE = 63
"""An id that no text has: transformers' classes need one for pictures."""
WORDS = (*tiny.SPECIAL[:4], *"\n:?.[]/", "USER", "ASSISTANT", "INST", *tiny.WORDS)
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


@dataclass(frozen=True)
class Kind:
    """One checkpoint: its class, fields of `config.json`, and where the tower lies."""

    model: str
    kind: str
    config: dict[str, Any]
    text: dict[str, Any] = field(default_factory=dict)
    inside: bool = False
    whole_clip: bool = False
    layers: int = 2
    tower_dtype: str = "float32"


PAD = {"image_aspect_ratio": "pad", "mm_projector_type": "mlp2x_gelu"}
ANYRES = {
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "unfreeze_mm_vision_tower": True,
}
PINPOINTS = [[42, 84], [84, 42], [84, 84], [126, 42], [42, 126]]
"""Width and height; of a small square picture the first of equals wins, which is the tall grid."""
KINDS = {
    "v1.5": Kind("LlavaLlamaForCausalLM", "llava", PAD | {"mm_patch_merge_type": "flat"}),
    "v1.5-linear": Kind(
        "LlavaLlamaForCausalLM",
        "llava_llama",
        {"mm_vision_select_feature": "cls_patch", "mm_vision_select_layer": -1},
        whole_clip=True,
        layers=1,
        tower_dtype="float16",
    ),
    "v1.5-deep": Kind("LlavaLlamaForCausalLM", "llava", {**PAD, "mm_projector_type": "mlp3x_gelu"}, layers=3),
    "v1.6-vicuna": Kind(
        "LlavaLlamaForCausalLM", "llava_llama", ANYRES | {"image_grid_pinpoints": str(PINPOINTS)}
    ),
    "v1.6-mistral": Kind(
        "LlavaMistralForCausalLM", "llava_mistral", ANYRES | {"image_grid_pinpoints": PINPOINTS}, inside=True
    ),
}


@dataclass(frozen=True)
class Made:
    """A checkpoint's folder, its tower's, and the same weights in transformers."""

    kind: Kind
    folder: Path
    tower: Path
    model: Any

    @property
    def any_res(self) -> bool:
        return self.kind.config.get("image_aspect_ratio") == "anyres"


def build(name: str, base: Path) -> Made:
    """Write `base/checkpoint` and `base/clip`."""
    kind, folder, tower = KINDS[name], base / "checkpoint", base / "clip"
    folder.mkdir(parents=True)
    model = _model(kind)
    _write_tower(kind, model, tower)
    state = {_original_name(key): value for key, value in model.state_dict().items()}
    if not kind.inside:
        state = {key: value for key, value in state.items() if ".vision_tower." not in key}
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors")
    text = model.config.text_config.to_dict()
    config = {key: value for key, value in text.items() if key in families.TEXT or key == "rms_norm_eps"}
    config |= {"architectures": [kind.model], "model_type": kind.kind, "mm_hidden_size": 32}
    config |= {
        "mm_vision_tower": "openai/clip-tiny",
        "mm_vision_select_layer": -2,
        "mm_use_im_start_end": False,
    }
    if "rope_theta" in text:
        config["rope_theta"] = text["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config | kind.config))
    tokenizer().save_pretrained(folder)
    return Made(kind, folder, tower, model)


def _model(kind: Kind) -> Any:
    import transformers

    any_res = kind.config.get("image_aspect_ratio") == "anyres"
    wanted = getattr(transformers, f"Llava{'Next' if any_res else ''}ForConditionalGeneration")
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    strategy = {"patch": "default", "cls_patch": "full"}[kind.config.get("mm_vision_select_feature", "patch")]
    config = wanted.config_class(
        text_config=families.TEXT
        | {"model_type": "mistral" if "Mistral" in kind.model else "llama"}
        | kind.text,
        vision_config=vision | {"image_size": families.TILE, "patch_size": families.PATCH} | families.CLIP,
        image_token_index=IMAGE,
        vision_feature_layer=kind.config.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=strategy,
        # transformers takes height before width
        **({"image_grid_pinpoints": [[h, w] for w, h in PINPOINTS]} if any_res else {}),
    )
    config._attn_implementation = "eager"
    torch.manual_seed(3)
    model = wanted(config)
    if kind.layers != 2:
        layers: list[Any] = [torch.nn.Linear(32, 64)]
        for _ in range(kind.layers - 1):
            layers += [torch.nn.GELU(), torch.nn.Linear(64, 64)]
        model.model.multi_modal_projector = layers[0] if len(layers) == 1 else torch.nn.Sequential(*layers)
    families.fill(model, 3)
    if kind.tower_dtype != "float32":
        for parameter in model.model.vision_tower.parameters():
            parameter.data = parameter.data.to(getattr(torch, kind.tower_dtype)).float()
    return model.eval()


def _original_name(key: str) -> str:
    if key == "lm_head.weight":
        return key
    key = key.removeprefix("model.")
    if key.startswith("language_model."):
        return "model." + key.removeprefix("language_model.")
    for ours, theirs in (("linear_1", "0"), ("linear_2", "2")):
        key = key.replace(f"multi_modal_projector.{ours}.", f"mm_projector.{theirs}.")
    key = key.replace("multi_modal_projector.", "mm_projector.")
    if key.startswith("vision_tower."):
        return "model.vision_tower.vision_tower.vision_model." + _tower_name(key)
    return f"model.{key}"


def _tower_name(key: str) -> str:
    return key.removeprefix("vision_tower.").removeprefix("vision_model.")


def _write_tower(kind: Kind, model: Any, folder: Path) -> None:
    """As CLIP's repositories are: of the tower alone, or with a text model and sizes in `vision_config`."""
    folder.mkdir()
    dtype = getattr(torch, kind.tower_dtype)
    state = {
        "vision_model." + _tower_name(key): value.to(dtype).contiguous()
        for key, value in model.model.vision_tower.state_dict(prefix="vision_tower.").items()
    }
    config = model.config.vision_config.to_dict() | {"architectures": ["CLIPVisionModel"]}
    if kind.whole_clip:
        state |= {
            "logit_scale": torch.zeros(()),
            "text_model.embeddings.token_embedding.weight": torch.zeros(3, 4),
        }
        state |= {"vision_model.embeddings.position_ids": torch.arange(10)[None]}
        config = {"model_type": "clip", "vision_config": config | {"hidden_size": 7}}
        config["vision_config_dict"] = {"hidden_size": 32}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    families._clip().save_pretrained(folder)


def tokenizer() -> Any:
    """A word-level tokenizer that knows no `<image>`."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*WORDS, *(f"w{index}" for index in range(tiny.VOCAB - len(WORDS)))]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.WhitespaceSplit(),
        ]
    )
    inner.add_special_tokens([AddedToken(word, special=True) for word in WORDS[:4]])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def conversation(made: Made, text: str) -> str:
    """The prompt of one question, as `Conversation.get_prompt` makes it."""
    if "Mistral" in made.kind.model:
        return f"[INST] {text} [/INST]"
    return f"{SYSTEM} USER: {text} ASSISTANT:"


def token_ids(text: str) -> list[int]:
    """`tokenizer_image_token`: -200 stands for a picture."""
    tokens = tokenizer()
    ids: list[int] = []
    for number, chunk in enumerate(text.split("<image>")):
        found = tokens(chunk)["input_ids"]
        ids += found if number == 0 else [-200, *found[1:]]
    return ids


def pixels(made: Made, picture: Image.Image) -> np.ndarray:
    """`process_images`: float32 `[tiles, 3, height, width]`."""
    if made.any_res:
        return np.stack([_preprocess(tile) for tile in _tiles(picture)])
    if made.kind.config.get("image_aspect_ratio") == "pad":
        picture = _square(picture)
    return _preprocess(picture)[np.newaxis]


MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def _square(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    side = max(width, height)
    # (122, 116, 104), CLIP's mean colour
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = [int(mean * 255) for mean in MEAN]
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = np.asarray(picture)
    return Image.fromarray(canvas)


def _preprocess(picture: Image.Image) -> np.ndarray:
    """CLIP's: the shorter side resized to a tile's, the middle cut out."""
    width, height = picture.size
    short = min(width, height)
    size = tuple(
        families.TILE if side == short else int(families.TILE * side / short) for side in (width, height)
    )
    levels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    top, left = (size[1] - families.TILE) // 2, (size[0] - families.TILE) // 2
    levels = levels[top : top + families.TILE, left : left + families.TILE]
    return ((levels / 255 - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)


def grid(size: tuple[int, int]) -> tuple[int, int]:
    """`select_best_resolution`: width and height."""

    def worth(room: list[int]) -> tuple[int, int]:
        scale = min(room[0] / size[0], room[1] / size[1])
        shown = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return shown, -(room[0] * room[1] - shown)

    width, height = max(PINPOINTS, key=worth)
    return width, height


def _tiles(picture: Image.Image) -> list[Image.Image]:
    """`process_anyres_image` before CLIP's own part of it."""
    width, height = grid(picture.size)
    across, down = width / picture.size[0], height / picture.size[1]
    if across < down:
        size = (width, min(math.ceil(picture.size[1] * across), height))
    else:
        size = (min(math.ceil(picture.size[0] * down), width), height)
    canvas = Image.new("RGB", (width, height), (0, 0, 0))
    canvas.paste(picture.resize(size), ((width - size[0]) // 2, (height - size[1]) // 2))
    side = families.TILE
    boxes = [(x, y, x + side, y + side) for y in range(0, height, side) for x in range(0, width, side)]
    return [picture.resize((side, side)), *(canvas.crop(box) for box in boxes)]


def inputs(made: Made, text: str, pictures: list[Image.Image]) -> dict[str, Any]:
    """What transformers' class takes for the original's prompt and pictures."""
    ids, given = token_ids(text), {}
    features: list[Any] = []
    if pictures:
        values = [torch.from_numpy(pixels(made, picture)) for picture in pictures]
        given["pixel_values"] = torch.cat(values)
        if made.any_res:
            most = max(len(each) for each in values)
            padded = [torch.nn.functional.pad(each, (0, 0) * 3 + (0, most - len(each))) for each in values]
            given["pixel_values"] = torch.stack(padded)
            given["image_sizes"] = torch.tensor([[picture.size[1], picture.size[0]] for picture in pictures])
        with torch.no_grad():
            features = list(made.model.get_image_features(**given, return_dict=True).pooler_output)
    whole: list[int] = []
    for token in ids:
        whole += [IMAGE] * len(features.pop(0)) if token == -200 else [token]
    return given | {"input_ids": torch.tensor([whole]), "attention_mask": torch.ones(1, len(whole))}


def generate(made: Made, given: dict[str, Any], tokens: int) -> list[int]:
    """Greedy tokens of transformers."""
    with torch.no_grad():
        out = made.model.generate(**given, max_new_tokens=tokens, do_sample=False, pad_token_id=3)
    return out[0, given["input_ids"].shape[1] :].tolist()
