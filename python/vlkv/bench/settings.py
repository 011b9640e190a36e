"""The settings of a benchmark, parsed from texts such as `1k,4k` and `1,0.1,160t`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vlkv.errors import BenchError
from vlkv.inputs.layouts import usual_picture
from vlkv.ops.allocation import check_share
from vlkv.policies.builtin import DEFAULT_POLICY, resolve
from vlkv.storage.manifest import Manifest

QUESTION = 32
"""Tokens of text after the picture."""
MOST_TOKENS = 10_000_000
MOST_BATCH = 1024
T = TypeVar("T")


@dataclass(frozen=True)
class Budget:
    """An arm's budget: a share of the prompt's cache, or a number of tokens per layer (`tokens` > 0)."""

    share: float = 0.0
    tokens: int = 0

    @property
    def label(self) -> str:
        """The text in a table's head."""
        if self.tokens:
            return f"{self.tokens} kept"
        return "full cache" if self.share == 1.0 else f"{self.share * 100:g}% kept"

    def of(self, length: int) -> float:
        """The budget as a share of a prompt of `length` tokens, at most 1."""
        return min(1.0, self.tokens / length) if self.tokens else self.share


@dataclass(frozen=True)
class Settings:
    """The runs of a benchmark: each prompt length with each batch size, under each budget, `repeat` times in turn.

    Fields:
        lengths: prompt tokens, including image tokens.
        batches: prompts that decode together.
        budgets: shares of the cache to keep; 1 is the policy `full`.
        new_tokens: lengths of answers. The longest is run; shorter ones are taken from its beginning.
        repeat: the number of runs of each.
        policy: the policy of budgets under 1.
    """

    lengths: tuple[int, ...]
    batches: tuple[int, ...]
    budgets: tuple[Budget, ...]
    new_tokens: tuple[int, ...] = (100,)
    repeat: int = 3
    policy: str = DEFAULT_POLICY

    @property
    def longest(self) -> int:
        """The longest answer, which is run."""
        return max(self.new_tokens)

    def check(self, manifest: Manifest) -> None:
        """Raises `BenchError` or `PolicyError` if the engine can't run the settings, before anything runs."""
        policy = resolve(self.policy)
        if policy.keeps_all and any(budget != Budget(1.0) for budget in self.budgets):
            raise BenchError(
                f"policy {self.policy!r} keeps everything; budgets under 1 need another, such as {DEFAULT_POLICY}"
            )
        picture = sum(len(layout.token_ids) for layout in usual_picture(manifest.image))
        least = picture + QUESTION + 1
        most = manifest.text.max_positions - self.longest
        for length in self.lengths:
            if length < least:
                raise BenchError(
                    f"a prompt of {length} tokens is too short for a picture of {picture} "
                    f"and {QUESTION + 1} of text; give at least {least}"
                )
            if length > most:
                raise BenchError(
                    f"{length} prompt tokens and {self.longest} new ones do not fit the engine's "
                    f"{manifest.text.max_positions} positions; prompts of up to {most} do"
                )
        if manifest.device is not None:
            self._check_device(manifest)

    def _check_device(self, manifest: Manifest) -> None:
        device = manifest.device
        assert device is not None
        longest = max(self.lengths) + self.longest
        if longest > device.capacity or max(self.batches) > device.batch:
            raise BenchError(
                f"{longest} tokens and batches of {max(self.batches)} do not fit this engine, built for "
                f"{device.capacity} slots and batches of {device.batch}"
            )


def parse_lengths(text: str, option: str = "prompt-tokens", least: int = 1) -> tuple[int, ...]:
    """Parses numbers of tokens: `640,1k,32k`; k is 1000."""
    found = []
    for part in _parts(text, option):
        match = re.fullmatch(r"(\d{1,8}(?:\.\d{1,3})?)(k?)", part, re.IGNORECASE)
        length = float(match.group(1)) * (1000 if match.group(2) else 1) if match else 0
        if length != int(length) or not 1 <= length <= MOST_TOKENS:
            raise BenchError(f"{option} {part!a:.40} is not a number of tokens, such as 640, 1k or 32k")
        if length < least:
            raise BenchError(f"{option} {part!a:.40} is too few; at least {least}")
        found.append(int(length))
    return _different(found, option)


def parse_batches(text: str) -> tuple[int, ...]:
    """Parses batch sizes: `1,4`."""
    found = []
    for part in _parts(text, "batch"):
        if not re.fullmatch(r"\d{1,6}", part) or not 1 <= int(part) <= MOST_BATCH:
            raise BenchError(f"batch {part!a:.40} is not a number from 1 to {MOST_BATCH}")
        found.append(int(part))
    return _different(found, "batch")


def parse_budgets(text: str) -> tuple[Budget, ...]:
    """Parses budgets: shares in (0, 1], or tokens per layer with a t: `1,0.1,160t`."""
    found = []
    for part in _parts(text, "budget"):
        if re.fullmatch(r"\d{1,8}t", part) and int(part[:-1]) >= 1:
            found.append(Budget(tokens=int(part[:-1])))
            continue
        try:
            share = float(part)
        except ValueError:
            raise BenchError(
                f"budget {part!a:.40} is not a budget, such as 1, 0.1 or 160t (tokens per layer)"
            ) from None
        found.append(Budget(check_share(share)))
    return _different(found, "budget")


def parse_engines(texts: Sequence[str]) -> list[tuple[str, Path]]:
    """Parses named engine directories, such as `int8=DIR`."""
    found = []
    for text in texts:
        name, sign, folder = text.partition("=")
        if not (sign and folder and re.fullmatch(r"[\w. -]{1,24}", name)):
            raise BenchError(
                f"also {text!a:.80} is not NAME=ENGINE, such as int8=DIR, with a name of 1 to 24 letters"
            )
        found.append((name, Path(folder)))
    _different([name for name, _ in found], "also")
    return found


def parse_names(text: str, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    """Parses a list of known names: `hf,kvpress`."""
    names = _parts(text, option)
    for name in names:
        if name not in known:
            raise BenchError(f"{option} {name!a:.40} is unknown; known: {', '.join(known)}")
    return _different(names, option)


def _parts(text: str, option: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise BenchError(f"{option} {text!a:.80} has an empty part; separate by single commas")
    return parts


def _different(found: list[T], option: str) -> tuple[T, ...]:
    if len(set(found)) < len(found):
        raise BenchError(f"{option} names something twice: {', '.join(map(str, found))}")
    return tuple(found)
