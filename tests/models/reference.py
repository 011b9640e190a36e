"""A checkpoint in transformers for comparisons: eager attention, its processor, and a cache that can be masked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoProcessor,
    DynamicCache,
    LlavaForConditionalGeneration,
)
from transformers.masking_utils import eager_mask
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers.utils import logging

logging.disable_progress_bar()
torch.set_num_threads(1)

Kept = Sequence[np.ndarray]
_WATCHED = "eager_without_evicted"
_kept: Kept | None = None


def _attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
    """Attends eagerly without seeing the prompt's evicted slots."""
    if _kept is not None:
        kept, length = _kept[module.layer_idx], _kept[-1]
        gone = torch.zeros(key.shape[1], key.shape[2], dtype=torch.bool)
        gone[:, : int(length)] = True
        gone[torch.arange(len(kept))[:, None], torch.from_numpy(kept).long()] = False
        gone = gone.repeat_interleave(module.num_key_value_groups, 0)[None, :, None]
        added = torch.zeros(gone.shape, dtype=query.dtype).masked_fill(gone, torch.finfo(query.dtype).min)
        mask = added if mask is None else mask + added
    return eager_attention_forward(module, query, key, value, mask, **options)


AttentionInterface.register(_WATCHED, _attention)
AttentionMaskInterface.register(_WATCHED, eager_mask)


class Reference:
    """The model and processor of a folder."""

    def __init__(self, folder: Path, dtype: str = "float32") -> None:
        self.dtype = getattr(torch, dtype)
        self.processor = AutoProcessor.from_pretrained(folder)
        model = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        self.model = model.to(self.dtype).eval()

    def inputs(self, prompt: str, pictures: Sequence[Path] = ()) -> dict[str, Any]:
        """Returns the processor's tensors of one user message through the chat template, pictures first."""
        images = []
        for path in pictures:
            with Image.open(path) as image:
                images.append(image.convert("RGB"))
        content = [{"type": "image", "image": image} for image in images]
        message = {"role": "user", "content": [*content, {"type": "text", "text": prompt}]}
        found = self.processor.apply_chat_template(
            [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        if "pixel_values" in found:
            found["pixel_values"] = found["pixel_values"].to(self.dtype)
        return dict(found)

    def generate(self, prompt: str, pictures: Sequence[Path], tokens: int) -> list[int]:
        """Returns the greedy tokens of transformers' own loop."""
        inputs = self.inputs(prompt, pictures)
        with torch.no_grad():
            out = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=3)
        return out[0, inputs["input_ids"].shape[1] :].tolist()

    def forced(self, inputs: dict[str, Any], tokens: Sequence[int], kept: Kept | None = None) -> np.ndarray:
        """Returns logits `[1 + T, V]` of the prompt's last token and after each given token.

        `kept` has per layer the prompt slots `[Hkv, count]` that these tokens see. The prompt sees all of itself.
        """
        global _kept
        text = self.model.config.text_config
        length = next(iter(inputs.values())).shape[1]
        cache = DynamicCache()
        try:
            text._attn_implementation = _WATCHED
            with torch.no_grad():
                logits = [self.model(**inputs, past_key_values=cache, use_cache=True).logits[0, -1]]
                _kept = None if kept is None else [*kept, np.array(length)]
                for token in tokens:
                    step = torch.tensor([[int(token)]])
                    out = self.model(input_ids=step, past_key_values=cache, use_cache=True)
                    logits.append(out.logits[0, -1])
        finally:
            _kept = None
            text._attn_implementation = "eager"
        return torch.stack(logits).double().numpy()

    def attention(self, inputs: dict[str, Any]) -> list[np.ndarray]:
        """Returns per text layer the prompt's attention `[Hq, S, S]` from eager transformers."""
        with torch.no_grad():
            out = self.model(**inputs, output_attentions=True)
        return [layer[0].double().numpy() for layer in out.attentions]

    def keys_and_values(self, inputs: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Returns what the prompt leaves in the cache, `[L, Hkv, S, D]` each; keys after RoPE."""
        cache = DynamicCache()
        with torch.no_grad():
            self.model(**inputs, past_key_values=cache, use_cache=True)
        keys, values = ([getattr(layer, kind)[0] for layer in cache.layers] for kind in ("keys", "values"))
        return torch.stack(keys).double().numpy(), torch.stack(values).double().numpy()

    def attention_of(
        self, inputs: dict[str, Any], image: np.ndarray, order: Sequence[int], positions: Sequence[int]
    ) -> np.ndarray:
        """Returns attention `[L, Hq, S, S]` where the prompt's tokens run in another order, or more than once.

        `image` are the prompt's image tokens, `order` the tokens that run, `positions` their positions.
        """
        config = self.model.config
        with torch.no_grad():
            embeds = self.model.get_input_embeddings()(inputs["input_ids"])
            features = self.model.get_image_features(
                inputs["pixel_values"],
                vision_feature_layer=config.vision_feature_layer,
                vision_feature_select_strategy=config.vision_feature_select_strategy,
            ).pooler_output
            embeds[0, torch.from_numpy(image)] = torch.cat(list(features))
            out = self.model(
                inputs_embeds=embeds[:, list(order)],
                position_ids=torch.tensor(positions)[None],
                attention_mask=torch.ones(1, len(order), dtype=torch.int64),
                output_attentions=True,
            )
        return np.stack([layer[0].double().numpy() for layer in out.attentions])
