"""`make demo`: asks about the shipped picture with the full cache and with a tenth of it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from vlkv import Engine, Question, Result

EXAMPLE = Path(__file__).parent / "tiny_vlm"
KEPT = np.array([226, 78, 27], np.float32)


def main() -> int:
    """Prints the answers, what was kept and the times, and draws the kept patches. Returns 1 if an answer is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    example = json.loads((EXAMPLE / "example.json").read_text())
    picture = EXAMPLE / "example.png"
    engine = Engine.load(arguments.engine)
    ask = {"prompt": example["prompt"], "images": [picture], "max_new_tokens": 16}
    engine.generate(**ask, policy="full")
    full = engine.generate(**ask, policy="full")
    small = engine.generate(**ask, policy="vl-cache", budget=0.1)

    console = Console(highlight=False)
    console.print(
        f"picture   {picture.relative_to(Path.cwd()) if picture.is_relative_to(Path.cwd()) else picture}"
    )
    console.print(f"question  {example['prompt']}")
    console.print(f"expected  {example['answer']}\n")
    console.print(compare(full, small))
    target = arguments.output / "kept.png"
    places = engine.prompt(Question(example["prompt"], [picture])).image_positions
    draw_kept(Image.open(picture), small, places).save(target)
    console.print(
        f"kept patches: {target} (the picture, then one column per layer; stronger where more heads kept it)"
    )
    return int(not full.text.strip() == small.text.strip() == example["answer"])


def compare(full: Result, small: Result) -> Table:
    """Makes a table that compares both runs."""
    table = Table("", "full cache", f"vl-cache, budget {small.budget:g}")
    table.add_row("answer", full.text, small.text)
    for layer, (whole, kept) in enumerate(zip(full.kept_tokens, small.kept_tokens, strict=True)):
        sparse = f"  (sparsity {small.sparsity[layer]:.1%})"
        table.add_row(f"layer {layer} keeps", f"{whole} tokens", f"{kept} tokens{sparse}")
    table.add_row("cache", f"{full.cache_bytes:,} bytes", f"{small.cache_bytes:,} bytes")
    for name in ("vision", "prefill", "compress", "decode"):
        table.add_row(name, *(f"{getattr(result.seconds, name) * 1e3:.1f} ms" for result in (full, small)))
    table.add_row("tokens/s", *(f"{result.tokens_per_second:.0f}" for result in (full, small)))
    return table


def draw_kept(picture: Image.Image, result: Result, image_tokens: np.ndarray) -> Image.Image:
    """Draws the picture and a copy for each layer. Kept patches are tinted by the share of heads that kept them.

    `image_tokens` are the prompt positions of the picture's patches, row by row.
    """
    base = np.asarray(picture.convert("RGB"), np.float32)
    side = int(len(image_tokens) ** 0.5)
    panels = [base]
    for positions in result.positions or []:
        share = np.zeros(result.prompt_tokens, np.float32)
        for head in positions:
            share[head] += 1 / len(positions)
        grid = Image.fromarray(share[image_tokens].reshape(side, side))
        tint = np.asarray(grid.resize(picture.size, Image.Resampling.NEAREST))[..., np.newaxis]
        panels.append(base * (1 - 0.6 * tint) + KEPT * 0.6 * tint)
    return Image.fromarray(np.concatenate(panels, axis=1).round().astype(np.uint8))


if __name__ == "__main__":
    sys.exit(main())
