"""How a checkpoint bears VL-Cache: exact answers with the full cache and with a tenth of it, by masking.

A plain reference on transformers, used to pick a training seed; it frees no memory. The prompt is prefilled
with the whole cache and gives the answer's first character; later ones see, per layer and KV head, what was
kept and the answer so far.

$ python -m examples.tiny_vlm.vlcache_check examples/tiny_vlm/checkpoint --first 0 --forms 500 --budget 0.1
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoProcessor, DynamicCache, LlavaForConditionalGeneration, LlavaProcessor

from .check import model_inputs, png_picture
from .forms import held_out_form, one_question

THRESHOLD = 0.01  # an attention weight under this share of its row's largest counts as zero
FLOOR = 0.01  # the smallest share of the prompt that a layer keeps
RECENT = 0.1  # share of a layer's count that always stays at the prompt's end
ANSWER = 5  # most tokens of an answer, with EOS


@dataclass(frozen=True, slots=True)
class Report:
    """Shares of exact answers, and the tokens each layer kept (mean over the prompts)."""

    full: float
    compressed: float
    kept: list[float]


def score(attention: Tensor, kv_heads: int) -> tuple[Tensor, Tensor]:
    """Compute one layer's score `[B, Hkv, C]` and sparsity `[B]` from the observed rows' attention.

    The attention is `[B, Hq, W, C]`. The W rows are the prompt's last; row i attends to C - W + 1 + i keys.
    """
    batch, heads, window, length = attention.shape
    total = attention.sum(2).view(batch, kv_heads, heads // kv_heads, length).sum(2)
    attended = torch.ones(window, length, dtype=torch.bool).tril(length - window)
    small = (attention < THRESHOLD * attention.amax(-1, keepdim=True)) & attended
    return total, small.sum((1, 2, 3)) / (heads * attended.sum())


def allocate(sparsity: Tensor, length: int, budget: float) -> list[int]:
    """Split the budget into tokens per layer `[L]`: by 1 - sparsity, within the floor and the length."""
    layers = len(sparsity)
    total = round(budget * layers * length)
    low = max(1, math.ceil(FLOOR * length))
    density = [max(1.0 - float(s), 1e-9) for s in sparsity]
    counts: dict[int, float] = {}
    while True:
        free = [layer for layer in range(layers) if layer not in counts]
        rest, weight = total - sum(counts.values()), sum(density[layer] for layer in free)
        share = {layer: rest * density[layer] / weight for layer in free}
        over = sum(max(s - length, 0) for s in share.values())
        under = sum(max(low - s, 0) for s in share.values())
        if over == under == 0:
            break
        bound = length if over >= under else low
        counts |= {n: bound for n, s in share.items() if (s > length if bound == length else s < low)}
    counts |= share
    whole = {layer: math.floor(count) for layer, count in counts.items()}
    order = sorted(counts, key=lambda layer: (whole[layer] - counts[layer], layer))
    for layer in order[: total - sum(whole.values())]:
        whole[layer] += 1
    return [whole[layer] for layer in range(layers)]


def keep_mask(scores: Tensor, count: int) -> Tensor:
    """Choose what stays, `[Hkv, C]`: the last tenth of `count`, then the highest scores, ties to the left."""
    length = scores.shape[-1]
    recent = int(RECENT * count)
    ranked = scores.clone()
    ranked[:, length - recent :] = math.inf
    kept = torch.zeros_like(scores, dtype=torch.bool)
    return kept.scatter_(1, ranked.argsort(dim=1, descending=True, stable=True)[:, :count], True)


@torch.inference_mode()
def decode(
    model: LlavaForConditionalGeneration, cache: DynamicCache, first: Tensor, kept: list[Tensor] | None
) -> list[list[int]]:
    """Decode after the first tokens `[B]`; `kept` `[B, Hkv, C]` per layer is what is seen, None is all."""
    text = model.model.language_model
    masks: list[Tensor | None] = [None] * len(text.layers)

    def mask_of(number: int):
        return lambda module, args, kwargs: (args, {**kwargs, "attention_mask": masks[number]})

    hooks = [
        layer.self_attn.register_forward_pre_hook(mask_of(number), with_kwargs=True)
        for number, layer in enumerate(text.layers)
    ]
    groups = model.config.text_config.num_attention_heads // model.config.text_config.num_key_value_heads
    tokens = first[:, None]
    for step in range(1, ANSWER):
        if kept is not None:
            for number, layer in enumerate(kept):
                seen = torch.nn.functional.pad(layer, (0, step), value=True).repeat_interleave(groups, dim=1)
                masks[number] = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[:, :, None]
        out = model(input_ids=tokens[:, -1:], past_key_values=cache)
        tokens = torch.cat([tokens, out.logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    for hook in hooks:
        hook.remove()
    end = model.generation_config.eos_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in tokens.tolist()]


@torch.inference_mode()
def prefill(
    model: LlavaForConditionalGeneration, inputs: dict[str, Tensor]
) -> tuple[DynamicCache, Tensor, list[Tensor]]:
    """Return the cache, the first answer tokens `[B]`, and later rows' attention `[B, Hq, W, C]`."""
    ids = inputs["input_ids"]
    start = int((ids[0] == model.config.image_token_id).nonzero().max()) + 1
    cache = DynamicCache(config=model.config.text_config)
    model(input_ids=ids[:, :start], pixel_values=inputs["pixel_values"], past_key_values=cache)
    out = model(input_ids=ids[:, start:], past_key_values=cache, output_attentions=True)
    return cache, out.logits[:, -1].argmax(-1), list(out.attentions)


def compare(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    numbers: Sequence[int],
    budget: float = 0.1,
    batch: int = 10,
) -> Report:
    """Answer one question about each held-out form, with the full and with the compressed cache."""
    model.set_attn_implementation("eager")
    kv_heads = model.config.text_config.num_key_value_heads
    full = compressed = 0
    counts = []
    for start in range(0, len(numbers), batch):
        forms = [held_out_form(n) for n in numbers[start : start + batch]]
        asked, expected = zip(*map(one_question, forms), strict=True)
        inputs = model_inputs(processor, [png_picture(form) for form in forms], asked)
        cache, first, attentions = prefill(model, inputs)
        length = inputs["input_ids"].shape[1]
        scores, sparsity = zip(*(score(attention, kv_heads) for attention in attentions), strict=True)
        keep = [allocate(row, length, budget) for row in torch.stack(sparsity, dim=1)]
        counts += keep
        kept = [
            torch.stack([keep_mask(layer[b], keep[b][number]) for b in range(len(forms))])
            for number, layer in enumerate(scores)
        ]
        small = processor.batch_decode(decode(model, cache, first, kept), skip_special_tokens=True)
        cache.crop(length - cache.get_seq_length())
        whole = processor.batch_decode(decode(model, cache, first, None), skip_special_tokens=True)
        full += sum(a == b for a, b in zip(whole, expected, strict=True))
        compressed += sum(a == b for a, b in zip(small, expected, strict=True))
    mean = torch.tensor(counts).double().mean(0).tolist()
    return Report(full / len(numbers), compressed / len(numbers), mean)


def main(arguments: list[str] | None = None) -> int:
    """Print both shares and what each layer kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--first", type=int, default=0, help="number of the first held-out form")
    parser.add_argument("--forms", type=int, default=500, help="how many held-out forms")
    parser.add_argument("--budget", type=float, default=0.1, help="share of the prompt's cache to keep")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = LlavaForConditionalGeneration.from_pretrained(options.checkpoint).eval()
    processor = AutoProcessor.from_pretrained(options.checkpoint)
    report = compare(model, processor, range(options.first, options.first + options.forms), options.budget)
    kept = " ".join(f"{count:.1f}" for count in report.kept)
    print(f"exact: full {report.full:.1%}, budget {options.budget:g} {report.compressed:.1%}")
    print(f"kept per layer: {kept}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
