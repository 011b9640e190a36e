"""How the stated memory is divided: every answer occupies what its own kept and new tokens need, no more.

A prompt in prefill needs its whole cache in addition, until compression frees it. A prefill begins only when it fits
beside what running answers hold at that time, and all of them have to fit at their full lengths without it
(`vlkv.scheduler.prefills`). A request that could never fit is refused at once.

L layers, C cache slots, Hkv key/value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vlkv.errors import MemoryLimitError, PromptError, quoted
from vlkv.inputs.prompt import Prompt
from vlkv.ops.allocation import kept_of_all
from vlkv.policies.compress import most_kept
from vlkv.policies.decode_eviction import slots_for
from vlkv.policies.observe import PROBES, observed_rows
from vlkv.policies.policy import Policy
from vlkv.policies.windows import Windows, reached, slots_within
from vlkv.storage.manifest import TextFacts, token_bytes

SLOTS = 64
MAX_SLOTS = 4096
"""Each lane has addresses of its own in every layer."""
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
        text: the sizes of the text model; layers with a sliding window hold at most the window.
        reserved: bytes of all lanes where they are allocated at the start, as on a device; else 0.
    """

    slots: int
    capacity: tuple[int, ...]
    prompt_tokens: int
    memory: int
    token_bytes: int
    prompt_token_bytes: int
    page_bytes: int
    text: TextFacts
    reserved: int = 0

    @property
    def room(self) -> int:
        """Bytes that are left for what `lane_bytes` and `prefill_bytes` count."""
        return self.memory - self.reserved

    def lane_bytes(self, sequence: Prepared) -> int:
        """The most bytes that a sequence's lane adds to `reserved`: its kept prompt tokens and its new tokens."""
        if self.reserved:
            return 0
        length, layers = len(sequence.prompt.token_ids), len(self.capacity)
        new = slots_for(sequence.policy, sequence.budget, length, sequence.max_new_tokens)
        kept = most_kept(sequence.policy, layers, length, sequence.budget)
        tokens = min(kept + layers * new, sum(slots_within(length + new, self._windows(sequence))))
        return tokens * self.token_bytes + self.page_bytes + self.recall_bytes(sequence)

    def recall_bytes(self, sequence: Prepared) -> int:
        """The most bytes of a sequence's evicted tokens in host memory; 0 unless its policy recalls them."""
        recall, length, layers = sequence.policy.recall, len(sequence.prompt.token_ids), len(self.capacity)
        if recall is None:
            return 0
        kept = kept_of_all(layers, length, sequence.budget) if sequence.policy.rule == "exact" else 0
        return recall.most_bytes(self.text, layers * length - min(kept, layers * length))

    def held_bytes(self, sequence: Prepared) -> tuple[int, int]:
        """The most bytes of a sequence's lane when prefill ends, and the most that each token of its answer adds.

        Evicted tokens that are recalled count. The lane never holds more than `lane_bytes`.
        """
        if self.reserved:
            return 0, 0
        layers = len(self.capacity)
        kept = most_kept(sequence.policy, layers, len(sequence.prompt.token_ids), sequence.budget)
        stays = kept * self.token_bytes + self.page_bytes + self.recall_bytes(sequence)
        return stays, layers * self.token_bytes

    def prefill_bytes(self, sequence: Prepared) -> int:
        """Bytes that its prefill needs beside the lane; 0 if nothing of the prompt goes: it fills the lane."""
        if self._stays(sequence):
            return 0
        policy, length = sequence.policy, len(sequence.prompt.token_ids)
        probes = PROBES if policy.rows == "probe" else 0
        found = (length + probes) * self.prompt_token_bytes
        if policy.reduce == "weighted":  # the window's queries stay until the prompt has run
            rows = len(observed_rows(policy, length, sequence.prompt.last_image))
            found += rows * self.text.layers * self.text.query_heads * self.text.head_dim * FLOAT
        return found

    def _windows(self, sequence: Prepared) -> Windows:
        return reached(self.text, len(sequence.prompt.token_ids) + sequence.max_new_tokens)

    def _stays(self, sequence: Prepared) -> bool:
        """Whether the prompt stays whole, so that prefill writes into the lane."""
        return sequence.policy.keeps_all and not any(self._windows(sequence))

    def check(self, sequence: Prepared) -> None:
        """Raises `PromptError` or `MemoryLimitError`, which names the limit, for a request that can never run here."""
        length, windows = len(sequence.prompt.token_ids), self._windows(sequence)
        # a layer that holds its window holds any prompt
        open_ended = [
            slots for slots, window in zip(self.capacity, windows, strict=True) if not 0 < window <= slots
        ]
        least = min(open_ended, default=self.text.max_positions)
        lane = f"a lane of this server holds {least} tokens a layer (memory {show(self.memory)})"
        new = slots_for(sequence.policy, sequence.budget, length, sequence.max_new_tokens)
        if sequence.policy.keeps_all and length + sequence.max_new_tokens > least:
            raise MemoryLimitError(
                f"policy {sequence.policy.name!r} needs cache slots for {length} prompt and {new} new tokens, {lane}: "
                "ask for fewer new tokens or another policy, or start it with more memory"
            )
        if not self._stays(sequence) and length > self.prompt_tokens:
            raise PromptError(
                f"the prompt has {length} tokens, this server takes {self.prompt_tokens} at most "
                f"(memory {show(self.memory)})"
            )
        if not sequence.policy.keeps_all:
            wanted = kept_of_all(len(self.capacity), length, sequence.budget)
            held = zip(self.capacity, windows, strict=True)
            most = [length if 0 < window <= slots else min(slots - new, length) for slots, window in held]
            if min(most) < 1 or sum(most) < wanted:
                raise MemoryLimitError(
                    f"budget {sequence.budget:g} of {length} prompt tokens and {sequence.max_new_tokens} new ones "
                    f"need {-(-wanted // len(self.capacity)) + new} tokens a layer, {lane}: ask for a smaller "
                    "budget or fewer new tokens, or start it with more memory"
                )
        needed = self.lane_bytes(sequence) + self.prefill_bytes(sequence)
        if needed > self.room:
            raise MemoryLimitError(
                f"{length} prompt tokens and {sequence.max_new_tokens} new ones under policy "
                f"{sequence.policy.name!r} need {show(needed)}, this server has {show(self.room)}: ask for a "
                "smaller budget or fewer new tokens, or start it with more memory"
            )


def check_sizes(slots: object, memory: object, capacity: object, prompt_tokens: object) -> None:
    """Raises `MemoryLimitError` for what is no whole number from 1 on, and for more than `MAX_SLOTS` lanes.

    None is allowed, and for `capacity` a number of each layer.
    """
    capacities = capacity if isinstance(capacity, list | tuple | np.ndarray) else [capacity]
    given = [("slots", slots), ("memory", memory), ("prompt_tokens", prompt_tokens)]
    for name, value in [*given, *(("capacity", one) for one in capacities)]:
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise MemoryLimitError(f"{name} {quoted(value)} is not a whole number")
        if value < 1:
            raise MemoryLimitError(f"{name} {quoted(value)} is under 1")
        if name == "slots" and value > MAX_SLOTS:
            raise MemoryLimitError(f"slots {quoted(value)} is over {MAX_SLOTS}")


def divide(
    text: TextFacts,
    hidden: int,
    slots: int = SLOTS,
    memory: int = 1 << 30,
    capacity: int | Sequence[int] | None = None,
    prompt_tokens: int | None = None,
    dtype: str = "float32",
) -> Plan:
    """A plan for `memory` bytes. An argument that is None becomes the most that memory and the model's positions allow.

    `dtype` is the cache's.

    Raises:
        MemoryLimitError: a number is under 1, or one answer or one prompt needs more than `memory`.
    """
    layers, most = text.layers, text.max_positions
    token = token_bytes(text, dtype)
    prompt = layers * (token + text.kv_heads * FLOAT) + hidden * FLOAT
    pages = 2 * layers * text.kv_heads * PAGE
    check_sizes(slots, memory, capacity, prompt_tokens)
    free = memory - pages
    if free < layers * token + prompt:
        raise MemoryLimitError(
            f"memory {show(memory)} does not hold one token's prefill and answer: that takes "
            f"{show(pages + layers * token + prompt)}"
        )
    windows = reached(text, None)
    given = each_layer(_level(free // token, most, windows) if capacity is None else capacity, layers)
    each = tuple(min(tokens, window or tokens) for tokens, window in zip(given, windows, strict=True))
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
    return Plan(slots, each, prompt_tokens, memory, token, prompt, pages, text)


def _level(total: int, most: int, windows: Windows) -> int:
    """The largest number of slots, at most `most`, that every layer can have, or its window, out of `total`."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(slots_within(middle, windows)) <= total else (low, middle - 1)
    return low


def each_layer(capacity: int | Sequence[int], layers: int) -> tuple[int, ...]:
    """The tokens of each layer, from one number or from one per layer."""
    each = (capacity,) * layers if isinstance(capacity, int) else tuple(capacity)
    if len(each) != layers:
        raise MemoryLimitError(f"capacity has {len(each)} numbers for {layers} layers")
    return each


def show(size: int) -> str:
    """Writes bytes as MiB or GiB."""
    return f"{size / 2**30:.4g} GiB" if size >= 2**30 else f"{size / 2**20:.4g} MiB"
