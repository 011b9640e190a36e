"""Trains the vision tower and projector to say which word of the closed list a patch holds.

The projector's first matrix gives one number per class, and GELU keeps it if it is above zero. The second matrix holds
one embedding per class. The feature of a patch is therefore the token embedding of its word, and training needs no
language model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from vlkv.eval.forms import GRID, font
from vlkv.eval.word_forms import GLYPHS, LEFT

from .words import BLANK, forms, patches, texts

PATCHES = GRID * GRID
HIGH = 4.0  # target output of the first matrix for the right class
STEPS, FORMS_FROM = 700, 640  # steps; the first step that shows whole forms
WORDS, LINES = 64, 8  # patches per picture before that; pictures per step
RATE, WARM_UP = 2e-3, 20
JITTER = 1  # pixels by which a word may be off its place
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def tower_config() -> CLIPVisionConfig:
    """CLIP with hidden size 192, 2 layers of 4 heads, and patches as large as a form's cells."""
    return CLIPVisionConfig(
        hidden_size=192, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        image_size=GRID * forms().cell, patch_size=forms().cell,
    )  # fmt: skip


class Reader(nn.Module):
    """The tower, and the projector's first matrix for the existing classes."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(tower_config())
        self.classify = nn.Linear(tower_config().hidden_size, len(texts()))

    def start(self, table: Tensor) -> None:
        """Sets the patch embeddings to the patches' principal components, grey in all three colours."""
        ink = (1 - table.flatten(0, 2).flatten(1).float() / 255)[:: len(table[0])]
        ink = ink - ink.mean(0)
        _, spread, axes = torch.linalg.svd(ink, full_matrices=False)
        width = tower_config().hidden_size
        axes = axes[:width] * (len(ink) ** 0.5 / spread[:width].clamp(min=spread[0] / 30))[:, None]
        weight = self.tower.embeddings.patch_embedding.weight
        with torch.no_grad():
            weight.copy_(
                -(axes.view(width, 1, *weight.shape[2:]) * torch.tensor(DEVIATION)[:, None, None] / 3)
            )

    def forward(self, grey: Tensor, places: Tensor) -> Tensor:
        """Returns numbers per class `[B, n, classes]` of grey patches.

        The patches are `[B, n, cell * cell]` from 0 to 1, at places `[B, n]`.
        """
        tower = self.tower
        parts = tower.embeddings
        weight = parts.patch_embedding.weight / torch.tensor(DEVIATION)[:, None, None]
        offset = -(weight * torch.tensor(MEAN)[:, None, None]).sum((1, 2, 3))
        embedded = nn.functional.linear(grey, weight.sum(1).flatten(1), offset)
        count = len(places)
        positions = parts.position_embedding.weight
        first = (parts.class_embedding + positions[0]).expand(count, 1, -1)
        hidden = tower.pre_layrnorm(torch.cat([first, embedded + positions[1 + places]], dim=1))
        for layer in tower.encoder.layers:
            hidden = layer(hidden, attention_mask=None)
        return self.classify(hidden[:, 1:])


def drawn() -> np.ndarray:
    """Draws the patch of each class, with its word at every allowed offset: uint8 `[classes, 3, 3, cell, cell]`."""
    cell = forms().cell
    reach = range(-JITTER, JITTER + 1)
    found = np.full((len(texts()), len(reach), len(reach), cell, cell), 255, np.uint8)
    top = (cell - GLYPHS[1]) // 2
    for number, text in enumerate(texts()):
        for i, down in enumerate(reach):
            for j, right in enumerate(reach):
                picture = Image.new("L", (cell, cell), 255)
                left = min(max(LEFT + right, 0), cell - GLYPHS[0] * len(text))
                ImageDraw.Draw(picture).text((left, top + down), text, fill=0, font=font())
                found[number, i, j] = np.asarray(picture)
    return found


def batches(
    table: np.ndarray, rng: np.random.Generator, numbers: Iterator[int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields grey patches, places and classes: first some patches of words, then whole forms."""
    for step in range(STEPS):
        if step < FORMS_FROM:
            labels = rng.integers(len(texts()), size=(LINES, WORDS))
            labels[rng.random(labels.shape) < 0.2] = BLANK
            places = np.stack([rng.choice(PATCHES, WORDS, replace=False) for _ in range(LINES)])
        else:
            labels = np.stack([patches(forms().random_form(next(numbers))) for _ in range(2)])
            places = np.broadcast_to(np.arange(PATCHES), labels.shape).copy()
        moved = rng.integers(2 * JITTER + 1, size=(2, *labels.shape))
        moved[:, rng.random(len(labels)) < 0.5] = JITTER  # half of the pictures stay as they are drawn
        grey = torch.from_numpy(table[labels, moved[0], moved[1]]).flatten(2).float() / 255
        yield grey, torch.from_numpy(places), torch.from_numpy(labels)


def loss_of(numbers: Tensor, labels: Tensor) -> Tensor:
    """Adds the class loss and the distance of GELU's output from `HIGH` for the class and from 0 elsewhere."""
    wanted = nn.functional.one_hot(labels, numbers.shape[-1]) * HIGH
    left = (nn.functional.gelu(numbers) - wanted).square().sum(-1)
    apart = nn.functional.cross_entropy(numbers.flatten(0, 1), labels.flatten(), reduction="none")
    weight = torch.where(labels == BLANK, 0.1, 1.0)  # most patches of a form are blank
    return ((left + 4 * apart.view_as(left)) * weight).sum() / weight.sum()


def train_tower(seed: int, tell: Callable[[str], None]) -> Reader:
    """Trains by seed."""
    torch.manual_seed(seed)
    reader, table = Reader(), drawn()
    reader.start(torch.from_numpy(table))
    rng = np.random.default_rng([seed, 11])
    numbers = iter(range(seed * 1_000_000 + 500_000, (seed + 1) * 1_000_000))
    optimizer = torch.optim.AdamW(reader.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    for step, (grey, places, labels) in enumerate(batches(table, rng, numbers)):
        rate = RATE * min(1, (step + 1) / WARM_UP) * (0.5 * (1 + np.cos(np.pi * step / STEPS)) + 0.01)
        for group in optimizer.param_groups:
            group["lr"] = rate
        given = reader(grey, places)
        loss = loss_of(given, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0 or step == STEPS - 1:
            right = (given.argmax(-1) == labels)[labels != BLANK].float().mean().item()
            tell(f"tower step {step}: loss {loss.item():.4f}, words right {right:.2%}")
    return reader.eval()
