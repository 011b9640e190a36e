"""The model: a million parameters in the LLaVA architecture, with grouped-query attention in its text part."""

from __future__ import annotations

import math

import torch
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from vlkv.eval.forms import CELL, GRID, SIDE

from .tokens import BOS, EOS, IMAGE, PAD, VOCABULARY

VISION_WIDTH = 96
TEXT_WIDTH = 128
TEXT_LAYERS = 4
TEXT_START = 1 + GRID * GRID  # position of the first token after the picture: BOS is 0, cell i is 1 + i


def make_config() -> LlavaConfig:
    """Returns the configuration: CLIP 2 x 96, projector 96-128-128, Llama 4 x 128 with 4 heads and 2 KV heads."""
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=CELL,
        projection_dim=VISION_WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=TEXT_WIDTH,
        intermediate_size=320,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.05,
        rope_theta=10_000.0,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=GRID * GRID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        dtype="float32",
    )


def sine_positions(width: int) -> torch.Tensor:
    """Encodes the cells by sine and cosine, `[576, width]`: half for the row, half for the column."""
    rates = torch.exp(-math.log(10_000.0) * torch.arange(width // 4) / (width // 4))
    angles = torch.arange(GRID)[:, None] * rates
    codes = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = codes[:, None].expand(GRID, GRID, -1)
    columns = codes[None].expand(GRID, GRID, -1)
    return torch.cat([rows, columns], dim=-1).reshape(GRID * GRID, width)


def make_model(seed: int) -> LlavaForConditionalGeneration:
    """Returns an untrained model, by seed."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(make_config())
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, do_sample=False, max_new_tokens=8
    )
    with torch.no_grad():
        positions = model.model.vision_tower.embeddings.position_embedding.weight
        positions[1:] = 0.5 * sine_positions(VISION_WIDTH)
        for linear in (
            model.model.multi_modal_projector.linear_1,
            model.model.multi_modal_projector.linear_2,
        ):
            linear.weight.normal_(0.0, 0.05)
            linear.bias.zero_()
    return model
