"""How the stated memory is divided: every answer occupies what its own kept and new tokens need, no more.

A prompt in prefill needs its whole cache in addition, until compression frees it. A prefill begins only when it fits,
and a request that could never fit is refused at once. L layers, C cache slots, Hkv key/value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vlkv.errors import MemoryLimitError, PromptError
from vlkv.inputs.prompt import Prompt
from vlkv.policies.compress import most_kept
from vlkv.policies.decode_eviction import slots_for
from vlkv.policies.policy import Policy
from vlkv.storage.manifest import TextFacts

SLOTS = 64
FLOAT = np.dtype(np.float32).itemsize
PAGE = 4096
"""Bytes of a memory page. Memory is allocated and returned in pages; the last page of each head may be partly empty."""


class Prepared(Protocol):
    """The fields of a sequence that a plan needs; see `vlkv.generation.sequence.Sequence`."""

    prompt: Prompt
    policy: Policy
    budget: float
    max_new_tokens: int


@dataclass(frozen=True)
class Plan:
    """The division of the memory; `divide` makes one.

    Fields:
        slots: the number of lanes: the most answers that run at once.
        capacity: the most tokens of a lane in each layer, `[L]`: kept prompt tokens and new tokens.
        prompt_tokens: the longest prompt that can be compressed; its whole cache exists during prefill.
        memory: the limit in bytes, without weights and the runtime's own buffers.
        token_bytes: bytes of one token's keys and values in one layer.
        prompt_token_bytes: bytes of one prompt token's keys and values in all layers, its scores and its embedding.
        page_bytes: bytes of a lane's pages that may be partly empty.
    """

    slots: int
    capacity: tuple[int, ...]
    prompt_tokens: int
    memory: int
    token_bytes: int
    prompt_token_bytes: int
    page_bytes: int

    def lane_bytes(self, sequence: Prepared) -> int:
        """The most bytes that a sequence's lane occupies: its kept prompt tokens and its new tokens."""
        length, layers = len(sequence.prompt.token_ids), len(self.capacity)
        new = slots_for(sequence.policy, sequence.budget, length, sequence.max_new_tokens)
        kept = most_kept(sequence.policy, layers, length, sequence.budget)
        return (kept + layers * new) * self.token_bytes + self.page_bytes

    def prefill_bytes(self, sequence: Prepared) -> int:
        """Bytes that its prefill needs beside the lane; 0 under a policy that keeps everything: it fills the lane."""
        return 0 if sequence.policy.keeps_all else len(sequence.prompt.token_ids) * self.prompt_token_bytes

    def check(self, sequence: Prepared) -> None:
        """Raises `PromptError` or `MemoryLimitError`, which names the limit, for a request that can never run here."""
        length, least = len(sequence.prompt.token_ids), min(self.capacity)
        lane = f"a lane of this server holds {least} tokens a layer (memory {show(self.memory)})"
        new = slots_for(sequence.policy, sequence.budget, length, sequence.max_new_tokens)
        if sequence.policy.keeps_all and length + sequence.max_new_tokens > least:
            raise MemoryLimitError(
                f"policy {sequence.policy.name!r} needs cache slots for {length} prompt and {new} new tokens, {lane}: "
                "ask for fewer new tokens or another policy, or start it with more memory"
            )
        if not sequence.policy.keeps_all:
            if length > self.prompt_tokens:
                raise PromptError(
                    f"the prompt has {length} tokens, this server takes {self.prompt_tokens} at most "
                    f"(memory {show(self.memory)})"
                )
            wanted = max(round(sequence.budget * len(self.capacity) * length), len(self.capacity))
            most = [min(slots - new, length) for slots in self.capacity]
            if min(most) < 1 or sum(most) < wanted:
                raise MemoryLimitError(
                    f"budget {sequence.budget:g} of {length} prompt tokens and {sequence.max_new_tokens} new ones "
                    f"need {-(-wanted // len(self.capacity)) + new} tokens a layer, {lane}: ask for a smaller "
                    "budget or fewer new tokens, or start it with more memory"
                )
        needed = self.lane_bytes(sequence) + self.prefill_bytes(sequence)
        if needed > self.memory:
            raise MemoryLimitError(
                f"{length} prompt tokens and {sequence.max_new_tokens} new ones under policy "
                f"{sequence.policy.name!r} need {show(needed)}, this server has {show(self.memory)}: ask for a "
                "smaller budget or fewer new tokens, or start it with more memory"
            )


def divide(
    text: TextFacts,
    hidden: int,
    slots: int = SLOTS,
    memory: int = 1 << 30,
    capacity: int | Sequence[int] | None = None,
    prompt_tokens: int | None = None,
) -> Plan:
    """A plan for `memory` bytes. An argument that is None becomes the most that memory and the model's positions allow.

    Raises:
        MemoryLimitError: a number is under 1, or one answer or one prompt needs more than `memory`.
    """
    layers, most = text.layers, text.max_positions
    token = text.kv_heads * text.head_dim * 2 * FLOAT
    prompt = layers * (token + text.kv_heads * FLOAT) + hidden * FLOAT
    pages = 2 * layers * text.kv_heads * PAGE
    for name, value in (("slots", slots), ("memory", memory), ("prompt_tokens", prompt_tokens)):
        if value is not None and value < 1:
            raise MemoryLimitError(f"{name} {value} is under 1")
    free = memory - pages
    if free < layers * token + prompt:
        raise MemoryLimitError(
            f"memory {show(memory)} does not hold one token's prefill and answer: that takes "
            f"{show(pages + layers * token + prompt)}"
        )
    each = _each(min(most, free // (layers * token)) if capacity is None else capacity, layers)
    if prompt_tokens is None:
        prompt_tokens = max(1, min(most, (free - layers * token) // prompt))
    for what, wanted in (
        (f"a lane of {max(each)} tokens", token * sum(each)),
        (f"a prompt of {prompt_tokens}", prompt_tokens * prompt),
    ):
        if min(each) < 1 or wanted > free:
            raise MemoryLimitError(
                f"memory {show(memory)} does not hold {what}: that takes {show(wanted + pages)}"
            )
    return Plan(slots, each, prompt_tokens, memory, token, prompt, pages)


def _each(capacity: int | Sequence[int], layers: int) -> tuple[int, ...]:
    each = (capacity,) * layers if isinstance(capacity, int) else tuple(capacity)
    if len(each) != layers:
        raise MemoryLimitError(f"capacity has {len(each)} numbers for {layers} layers")
    return each


def show(size: int) -> str:
    """Writes bytes as MiB or GiB."""
    return f"{size / 2**30:.4g} GiB" if size >= 2**30 else f"{size / 2**20:.4g} MiB"
