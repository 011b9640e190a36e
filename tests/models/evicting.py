"""Decodes in transformers, in float64, with a cache from which tokens are really removed, per layer and head."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.models.llama.modeling_llama import eager_attention_forward

from oracles.evict import merged

_NAME = "eager_over_all_there_is"
_seen: dict[int, np.ndarray] = {}


def _attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
    """Attends eagerly to every existing slot and records the weights `[Hq, C]`."""
    assert query.shape[2] == 1
    output, weights = eager_attention_forward(module, query, key, value, None, **options)
    _seen[module.layer_idx] = weights[0, :, 0].numpy()
    return output, weights


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, lambda *_, **__: None)


class Evicting:
    """A prompt's cache that is cut to the kept tokens, merged if asked, and then decoded from.

    Attributes:
        positions: per layer and head, the position in each slot, in order of age.
        attention: per layer `[Hkv, C]`, the attention of the last token, summed over query heads.
    """

    def __init__(
        self,
        reference: Any,
        inputs: dict[str, Any],
        kept: list[np.ndarray],
        merge: bool,
        begin: list[int] | None = None,
    ) -> None:
        """`begin` is per layer the oldest position that its window lets it see; older ones are merged into nothing."""
        self.model = reference.model
        self.length = next(iter(inputs.values())).shape[1]
        self.cache = DynamicCache()
        with torch.no_grad():
            out = self.model(**inputs, past_key_values=self.cache, use_cache=True)
        self.logits = out.logits[0, -1].numpy()
        self.positions = [[list(map(int, head)) for head in layer] for layer in kept]
        self.tokens = 0
        begin = begin or [0] * len(kept)
        for layer, heads, first in zip(self.cache.layers, self.positions, begin, strict=True):
            length, slots = self.length - first, [[position - first for position in head] for head in heads]
            for name in ("keys", "values"):
                rows = getattr(layer, name)[0].numpy()[:, first:]
                cut = [merged(r, h, length) if merge else r[h] for r, h in zip(rows, slots, strict=True)]
                setattr(layer, name, torch.from_numpy(np.stack(cut))[None])

    def step(self, token: int) -> np.ndarray:
        """Appends a token and returns its logits `[V]`."""
        position = self.length + self.tokens
        self.tokens += 1
        text = self.model.config.text_config
        before = text._attn_implementation
        try:
            text._attn_implementation = _NAME
            with torch.no_grad():
                out = self.model(
                    input_ids=torch.tensor([[int(token)]]),
                    position_ids=torch.tensor([[position]]),
                    past_key_values=self.cache,
                    use_cache=True,
                )
        finally:
            text._attn_implementation = before
        for layer in self.positions:
            for head in layer:
                head.append(position)
        self.attention = []
        for number, layer in enumerate(self.positions):
            weights = _seen[number]
            self.attention.append(weights.reshape(len(layer), -1, weights.shape[1]).sum(axis=1))
        return out.logits[0, -1].numpy()

    def drop(self, layer: int, gone: list[int]) -> None:
        """Removes one position of each head."""
        part = self.cache.layers[layer]
        slots = [head.index(position) for head, position in zip(self.positions[layer], gone, strict=True)]
        for name in ("keys", "values"):
            rows = getattr(part, name)[0]
            left = [torch.cat([r[:n], r[n + 1 :]]) for r, n in zip(rows, slots, strict=True)]
            setattr(part, name, torch.stack(left)[None])
        for head, slot in zip(self.positions[layer], slots, strict=True):
            del head[slot]
