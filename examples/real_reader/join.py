"""Joins the shipped delta with the package's weights into a LLaVA checkpoint in the Hugging Face format.

$ python -m examples.real_reader.join -o out/real_reader/checkpoint        # 545 MB, float32

It needs the extra `train`, gguf and accelerate.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from examples.tiny_vlm.train import check_output
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlkv.eval.forms import GRID
from vlkv.storage.directories import new_directory

from . import base
from .reader import SCALE
from .tower import DEVIATION, HIGH, MEAN, PATCHES, Reader, tower_config
from .words import CHAT_TEMPLATE, FORMS, class_tokens, forms

DELTA = Path(__file__).parent / "delta.safetensors"


def save_delta(reader: Reader, trained: dict[str, Tensor], path: Path) -> None:
    """Writes the trained weights in float16."""
    weights = {f"tower.{name}": value for name, value in reader.state_dict().items()}
    weights |= {f"text.{name}": value for name, value in trained.items()}
    kept = {name: value.half().contiguous() for name, value in weights.items() if value.is_floating_point()}
    save_file(kept, path, metadata={"format": "pt"})


def load_delta(path: Path = DELTA) -> tuple[Reader, dict[str, Tensor]]:
    """Returns the tower, and the trained weights of the language model by name, in float32."""
    weights = {name: value.float() for name, value in load_file(path).items()}
    parts: dict[str, dict[str, Tensor]] = {"tower": {}, "text": {}}
    for name, value in weights.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    reader = Reader()
    missing, unknown = reader.load_state_dict(parts["tower"], strict=False)
    if unknown or any(not name.endswith("position_ids") for name in missing):
        raise ValueError(f"{path.name} is no delta of this tower: {[*missing, *unknown][:3]}")
    return reader.eval(), parts["text"]


@torch.no_grad()
def merge(model: LlamaForCausalLM, trained: dict[str, Tensor]) -> None:
    """Adds the trained products to the matrices beside which they were trained."""
    for name in {name.rpartition(".")[0] for name in trained if name.endswith(".down")}:
        matrix = model.model.get_submodule(name).weight
        matrix += SCALE * trained[f"{name}.up"] @ trained[f"{name}.down"]


@torch.no_grad()
def join(
    text: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, reader: Reader, trained: dict[str, Tensor]
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Returns the model and its processor. `text` is changed, unless only the blank was trained."""
    merge(text, trained)
    config = LlavaConfig(
        vision_config=tower_config(),
        text_config=text.config,
        vision_feature_layer=-1,
        image_token_id=tokenizer.convert_tokens_to_ids(base.IMAGE),
        image_seq_length=PATCHES,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config).float().eval()
    language = {k.removeprefix("model."): v for k, v in text.state_dict().items() if k.startswith("model.")}
    model.model.language_model.load_state_dict(language)
    model.model.vision_tower.load_state_dict(reader.tower.state_dict())
    model.tie_weights()
    table = torch.cat([trained["blank"][None], text.model.embed_tokens.weight[class_tokens(tokenizer)]])
    first, second = (getattr(model.model.multi_modal_projector, name) for name in ("linear_1", "linear_2"))
    for part in (first.weight, first.bias, second.weight, second.bias):
        part.zero_()
    first.weight[: len(table)], first.bias[: len(table)] = reader.classify.weight, reader.classify.bias
    second.weight[:, : len(table)] = table.T / HIGH
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    side = GRID * forms().cell
    image = CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=MEAN,
        image_std=DEVIATION,
    )
    processor = LlavaProcessor(
        image,
        tokenizer,
        patch_size=forms().cell,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=base.IMAGE,
        chat_template=CHAT_TEMPLATE,
    )
    return model, processor


def write(model: LlavaForConditionalGeneration, processor: LlavaProcessor, target: Path) -> None:
    """Writes a Hugging Face folder with `forms.json`, whole or not at all."""
    with new_directory(target) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for part in (config, config["text_config"]):  # no longer applies: the weights are float32
            part.pop("quantization_config", None)
        path.write_text(json.dumps(config, indent=2) + "\n")
        (folder / FORMS.name).write_bytes(FORMS.read_bytes())


def main(arguments: list[str] | None = None) -> int:
    """Downloads, joins, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument(
        "--cache", type=Path, default=Path("out/real_reader/base"), help="folder for the package's file"
    )
    parser.add_argument("--delta", type=Path, default=DELTA, help="file with the trained weights")
    parser.add_argument("--plain", action="store_true", help="do not change the package's language model")
    options = parser.parse_args(arguments)
    check_output(parser, options.output)
    reader, trained = load_delta(options.delta)
    if options.plain:
        trained = {"blank": trained["blank"]}
    text, tokenizer = base.load(options.cache)
    write(*join(text, tokenizer, reader, trained), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
