"""The original LLaVA (1.5 and 1.6): a flat configuration, a CLIP tower in a repository of its own, no image token.

Pictures, tokens and conversations are those of the code that the checkpoints were published with
(https://github.com/haotian-liu/LLaVA), also where transformers' port of it differs.
"""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import msgspec

from vlkv.errors import CheckpointError
from vlkv.storage.image_facts import AnyRes, ImageFacts
from vlkv_export.checkpoint.facts import Projector
from vlkv_export.checkpoint.fields import Fields, read_object, show
from vlkv_export.checkpoint.processor import BICUBIC, read_grids, read_image, read_pinpoints
from vlkv_export.checkpoint.tokenizer import AddedTokens
from vlkv_export.models.families import llava
from vlkv_export.models.families.llava_next import grid_side
from vlkv_export.models.spec import Described, Family, Foreign, ImageSource

TOKEN = "<image>"
KNOWN_TOWERS = {
    "openai/clip-vit-large-patch14-336": llava.VISION_WHERE_ABSENT,
    "openai/clip-vit-large-patch14": llava.VISION_WHERE_ABSENT | {"image_size": 224},
}
"""Towers whose weights may lie in the checkpoint itself, so that their own folder is not needed."""
STRATEGIES = {"patch": "default", "cls_patch": "full"}
MOST_LAYERS = 8
PREFIXES = (
    (re.compile(r"lm_head\."), "lm_head."),
    (re.compile(r"model\.(?=(?:embed_tokens|layers|norm)\.)"), "text."),
    (re.compile(r"model\.vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?"), "vision."),
    (re.compile(r"model\.image_newline$"), llava.NEWLINE),
    (re.compile(r"model\.mm_projector\.(?=weight$|bias$)"), "projector.linear_1."),
    *(
        (re.compile(rf"model\.mm_projector\.{2 * layer}\."), f"projector.linear_{layer + 1}.")
        for layer in range(MOST_LAYERS)
    ),
)
TOWER_PREFIXES = (
    (
        re.compile(r"(?:vision_model\.)?(?=(?:embeddings|pre_layrnorm|encoder|post_layernorm)\.)"),
        "vision.",
    ),
)

CONTENT = (
    "{% macro content(message) %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endmacro %}"
    "{% if messages[0]['role'] == 'system' %}{% set system = content(messages[0]) %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = DEFAULT %}{% endif %}"
)
VICUNA = (
    CONTENT.replace(
        "DEFAULT",
        '"A chat between a curious human and an artificial intelligence assistant. '
        "The assistant gives helpful, detailed, and polite answers to the human's questions.\"",
    )
    + "{{ system + ' ' }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ 'USER: ' + content(message) + ' ' }}{% else %}{{ 'ASSISTANT: ' + content(message) + '</s>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
MISTRAL_INSTRUCT = (
    CONTENT.replace("DEFAULT", "''")
    + "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% if loop.first and system %}{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}{% endif %}"
    "{{ content(message) + ' [/INST]' }}{% else %}{{ ' ' + content(message) + ' </s>' }}"
    "{% endif %}{% endfor %}"
)
CHATML = (
    CONTENT.replace("DEFAULT", "'Answer the questions.'")
    + "{{ '<|im_start|>system\\n' + system + '<|im_end|>' }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + content(message) + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Conversations `llava_v1`, `mistral_instruct` and `chatml_direct` of the original code's `conversation.py`."""


def tower_name(config: Fields) -> str:
    """Return the name of the tower's repository. Raises `CheckpointError`."""
    name = "mm_vision_tower" if "mm_vision_tower" in config else "vision_tower"
    return config.string(name)


def missing_tower(config: Fields) -> CheckpointError:
    """Make the error that says that the tower's folder has to be given."""
    return CheckpointError(
        f"{config.where}: the vision tower {show(tower_name(config))} lies in a repository of its own; "
        "fetch it and give its folder: vlkv export --tower FOLDER"
    )


def describe(config: Fields, tower: Path | None, text_model: str) -> Described:
    """Put the flat configuration into transformers' terms; `tower` is the folder of the vision tower.

    Raises `CheckpointError` where the folder is needed and missing, or a setting is not supported.
    """
    for name in ("mm_use_im_start_end", "s2"):
        if config.boolean(name, False):
            raise CheckpointError(f"{config.where}: {name} true is not supported")
    feature = config.string("mm_vision_select_feature", "patch")
    if feature not in STRATEGIES:
        raise config.fail("mm_vision_select_feature", " or ".join(map(repr, STRATEGIES)))
    terms: dict[str, object] = {
        "vision_feature_layer": config.integer("mm_vision_select_layer", -2, low=-1024),
        "vision_feature_select_strategy": STRATEGIES[feature],
    }
    return Described(
        Fields({**config.values, **terms}, config.where),
        _vision(config, tower),
        Fields({**config.values, "model_type": text_model}, config.where),
    )


def _vision(config: Fields, tower: Path | None) -> Fields:
    if tower is None:
        name = tower_name(config)
        if name not in KNOWN_TOWERS:
            raise missing_tower(config)
        return Fields(KNOWN_TOWERS[name], f"{config.where}: {name}")
    fields = Fields(read_object(tower / "config.json"), str(tower / "config.json"))
    kind = fields.string("model_type", "")
    if kind == "clip_vision_model":
        return fields
    if kind != "clip":
        raise CheckpointError(
            f"{fields.where}: model_type {show(kind)} is no CLIP tower; give one to --tower"
        )
    # old files of CLIP say some fields in a second object, which counts more
    vision = fields.child("vision_config")
    return Fields({**vision.values, **fields.child("vision_config_dict").values}, vision.where)


def read(config: Fields) -> Projector:
    """Read `mm_projector_type`: linear layers with GELU between them, `linear` being one."""
    kind = config.string("mm_projector_type", "linear")
    match = re.fullmatch(r"mlp(\d)x_gelu", kind)
    layers = 1 if kind == "linear" else int(match.group(1)) if match else 0
    if not 1 <= layers <= MOST_LAYERS:
        raise CheckpointError(
            f"{config.where}: mm_projector_type {show(kind)} is not supported; supported: linear, "
            f"mlpNx_gelu with N up to {MOST_LAYERS}"
        )
    return Projector("gelu", True, layers=layers, newline=merge_type(config) == "spatial_unpad")


def merge_type(config: Fields) -> str:
    """Return `mm_patch_merge_type`, which goes with `image_aspect_ratio`. Raises `CheckpointError`."""
    merge = config.string("mm_patch_merge_type", "flat")
    ratio = config.string("image_aspect_ratio", "square")
    # no published checkpoint combines them otherwise
    if (ratio, merge) not in (("square", "flat"), ("pad", "flat"), ("anyres", "spatial_unpad")):
        raise CheckpointError(
            f"{config.where}: image_aspect_ratio {show(ratio)} with mm_patch_merge_type {show(merge)} is not "
            "supported; supported: square or pad with flat, anyres with spatial_unpad"
        )
    return merge


def read_picture(source: ImageSource) -> ImageFacts:
    """One square, or with `anyres` grids of tiles; `pad` puts the mean colour around a picture first."""
    config, vision = source.config, source.vision
    if merge_type(config) == "spatial_unpad":
        side = grid_side(config, vision)
        pinpoints = read_pinpoints(_grids(config), _grids(config), ((0, 0),), vision.image_size)
        rule = AnyRes(pinpoints=pinpoints, rows=side, columns=side)
        facts = read_grids(
            source.processor, vision, source.token, ("CLIPImageProcessor", "CLIPFeatureExtractor"), rule
        )
        return msgspec.structs.replace(facts, resample=BICUBIC, spliced=True)
    facts = read_image(source.processor, vision, source.token)
    padded = config.string("image_aspect_ratio", "square") == "pad"
    return msgspec.structs.replace(facts, pad_to_square=padded, spliced=True)


def _grids(config: Fields) -> Fields:
    """`image_grid_pinpoints`, a list or its text; the original has width before height, a manifest height first."""
    name = "image_grid_pinpoints"
    value = config.get(name)
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
    if not isinstance(value, list | tuple) or not all(isinstance(pair, list | tuple) for pair in value):
        raise config.fail(name, "a list of [width, height] in pixels")
    return Fields({name: [list(reversed(pair)) for pair in value]}, config.where)


def template(config: Fields, added: AddedTokens) -> tuple[str, str]:
    """Choose the conversation that the original code would, and its name there."""
    if "LlavaMistralForCausalLM" in (config.get("architectures") or [config.get("model_type")]):
        return MISTRAL_INSTRUCT, "mistral_instruct"
    if {"<|im_start|>", "<|im_end|>"} & set(added.texts.values()):
        return CHATML, "chatml_direct"
    return VICUNA, "llava_v1"


def _family(text_model: str) -> Family:
    def described(config: Fields, tower: Path | None) -> Described:
        return describe(config, tower, text_model)

    return replace(
        llava.FAMILY,
        model_type=f"llava_{text_model}",
        aliases=("llava",),
        text=text_model,
        prefixes=PREFIXES,
        read=read,
        read_image=read_picture,
        foreign=Foreign(described, missing_tower, TOKEN, TOWER_PREFIXES, template),
    )


LLAMA = _family("llama")
MISTRAL = _family("mistral")
