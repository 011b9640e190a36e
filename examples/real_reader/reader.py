"""Teaches the language model to read the tower's output: LoRA on conversations about forms.

The tower is not run. The feature of a patch is the embedding of its class. Early pictures leave out most of their blank
patches, and each remaining patch keeps its position in the whole picture. This makes a step cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from vlkv.eval.forms import Form, question
from vlkv.eval.tasks import LIST_QUESTION

from .tower import PATCHES
from .words import BEFORE_PICTURE, BLANK, class_tokens, forms, patches

RANK, SCALE = 16, 2.0
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj")
NONE = -100  # this label does not count in the loss
CAPITAL, LISTED = 0.3, 0.06  # share of questions with a capital; share of turns that ask for all keys


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps with `patches` per picture, `forms` per step, `turns` per conversation, at most `fields` per form."""

    steps: int
    patches: int
    forms: int
    turns: int
    fields: tuple[int, int]
    rates: tuple[float, float]


STAGES = (
    Stage(40, 90, 3, 12, (6, 20), (1e-3, 1e-3)),
    Stage(15, 250, 2, 12, (12, 24), (1e-3, 8e-4)),
    Stage(45, PATCHES, 1, 18, (12, 24), (8e-4, 2e-5)),
)
WARM_UP = 10


class Lora(nn.Module):
    """A frozen matrix product plus a trained product of rank `RANK`."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(RANK, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum of both products."""
        return self.base(x) + SCALE * nn.functional.linear(nn.functional.linear(x, self.down), self.up)


def adapt(model: LlamaForCausalLM) -> dict[str, Lora]:
    """Puts a `Lora` around each attention matrix and freezes the rest in bfloat16. Returns them by name."""
    model.requires_grad_(False)
    model.model.layers.apply(lambda part: part.to(torch.bfloat16) if isinstance(part, nn.Linear) else part)
    added = {}
    for number, layer in enumerate(model.model.layers):
        for name in ADAPTED:
            lora = Lora(getattr(layer.self_attn, name))
            setattr(layer.self_attn, name, lora)
            added[f"layers.{number}.self_attn.{name}"] = lora
    return added


class Table(nn.Module):
    """The embedding of each class: that of its token, and a blank that is learned."""

    def __init__(self, model: LlamaForCausalLM, tokens: list[int]) -> None:
        super().__init__()
        words = model.model.embed_tokens.weight[tokens].detach().clone()
        self.register_buffer("words", words)
        self.blank = nn.Parameter(words.mean(0))

    def forward(self) -> Tensor:
        """Returns the embeddings `[classes, hidden]`."""
        return torch.cat([self.blank[None], self.words])


@dataclass(frozen=True, slots=True)
class Batch:
    """B conversations, padded on the right.

    before, after: tokens before the picture `[n]` and after it `[B, T]`. labels `[B, T]`: the next token inside an
    answer. labels_of, places `[B, patches]`: class and place of the patches that are shown.
    """

    before: Tensor
    shown: Tensor
    places: Tensor
    after: Tensor
    labels: Tensor


def turns(form: Form, count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Returns the questions and answers of one conversation."""
    chosen = np.resize(rng.permutation(len(form.fields)), count)
    told = []
    for index in chosen:
        field = form.fields[index]
        asked, answer = question(field.key), field.value
        if rng.random() < LISTED:
            asked, answer = LIST_QUESTION, " ".join(each.key for each in form.fields)
        if rng.random() < CAPITAL:
            asked = asked[0].upper() + asked[1:]
        told.append((asked, answer))
    return told


def conversation(
    tokenizer: PreTrainedTokenizerFast, told: list[tuple[str, str]]
) -> tuple[list[int], list[int]]:
    """Returns the tokens after the picture, and for each the next token of an answer."""
    tokens: list[int] = []
    labels: list[int] = []
    start = "\n"
    for asked, answer in told:
        given = tokenizer.encode(
            f"{start}{asked}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False
        )
        said = tokenizer.encode(f"{answer}<|im_end|>", add_special_tokens=False)
        tokens += given + said
        labels += [NONE] * (len(given) - 1) + said + [NONE]
        start = "\n<|im_start|>user\n"
    return tokens, labels


def batches(
    stage: Stage, tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator, numbers: Iterator[int]
) -> Iterator[Batch]:
    """Yields the batches of a stage. Each has forms that were never seen before."""
    before = torch.tensor(tokenizer.encode(BEFORE_PICTURE, add_special_tokens=False))
    for _ in range(stage.steps):
        shown, places, told = [], [], []
        for _ in range(stage.forms):
            form = forms().random_form(next(numbers), stage.fields)
            found = patches(form)
            blanks = rng.permutation(np.flatnonzero(found == BLANK))
            words = np.flatnonzero(found != BLANK)
            places.append(np.sort([*words, *blanks[: max(stage.patches - len(words), 0)]])[: stage.patches])
            shown.append(found[places[-1]])
            told.append(conversation(tokenizer, turns(form, stage.turns, rng)))
        longest = max(len(tokens) for tokens, _ in told)
        after = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens, _ in told])
        labels = torch.tensor([wanted + [NONE] * (longest - len(wanted)) for _, wanted in told])
        yield Batch(
            before, torch.from_numpy(np.stack(shown)), torch.from_numpy(np.stack(places)), after, labels
        )


def answers_of(model: LlamaForCausalLM, table: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns the logits of the answers' tokens `[n, V]`, and the right tokens `[n]`."""
    count = len(batch.after)
    embed = model.model.embed_tokens
    first = len(batch.before)
    before = embed(batch.before).expand(count, -1, -1)
    embedded = torch.cat([before, table[batch.shown], embed(batch.after)], dim=1)
    asked = first + PATCHES + torch.arange(batch.after.shape[1])
    positions = torch.cat(
        [torch.arange(first).expand(count, -1), first + batch.places, asked.expand(count, -1)], dim=1
    )
    length = embedded.shape[1]
    mask = torch.zeros(1, 1, length, length).masked_fill(
        ~torch.ones(length, length).tril().bool(), -torch.inf
    )
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(
            inputs_embeds=embedded, position_ids=positions, attention_mask=mask, use_cache=False
        )
        states = hidden.last_hidden_state[:, -batch.after.shape[1] :]
        told = batch.labels != NONE
        logits = nn.functional.linear(states[told], embed.weight)
    return logits.float(), batch.labels[told]


def train_reader(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    tell: Callable[[str], None],
    keep: Callable[[dict[str, Tensor]], None] = lambda weights: None,
) -> dict[str, Tensor]:
    """Trains by seed and returns the trained weights by name. `keep` receives them every 20 steps."""
    torch.manual_seed(seed)
    added, table = adapt(model), Table(model, class_tokens(tokenizer))
    rng = np.random.default_rng([seed, 12])
    numbers = iter(range(seed * 1_000_000, seed * 1_000_000 + 500_000))
    matrices = [p for lora in added.values() for p in (lora.down, lora.up)]
    optimizer = torch.optim.AdamW([*matrices, table.blank], lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
    whole = 0
    for number, stage in enumerate(STAGES, 1):
        for step, batch in enumerate(batches(stage, tokenizer, rng, numbers)):
            high, low = stage.rates
            rate = low + (high - low) * 0.5 * (1 + np.cos(np.pi * step / stage.steps))
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (whole + 1) / WARM_UP)
            logits, wanted = answers_of(model, table(), batch)
            loss = nn.functional.cross_entropy(logits, wanted)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([*matrices, table.blank], 1.0)
            optimizer.step()
            whole += 1
            right = (logits.argmax(-1) == wanted).float().mean().item()
            tell(f"reader stage {number} step {step}: loss {loss.item():.4f}, tokens right {right:.1%}")
            if whole % 20 == 0:
                keep(weights_of(added, table))
    return weights_of(added, table)


def weights_of(added: dict[str, Lora], table: Table) -> dict[str, Tensor]:
    """Returns the trained weights by name."""
    found = {"blank": table.blank.detach().clone()}
    for name, lora in added.items():
        found[f"{name}.down"], found[f"{name}.up"] = lora.down.detach().clone(), lora.up.detach().clone()
    return found
