"""How a stated memory is divided: lanes for running answers, and one prompt's working memory. Known at the start.

L layers, C cache slots, Hkv key/value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlkv.errors import MemoryLimitError, PromptError
from vlkv.generation.sequence import Sequence as Prepared
from vlkv.policies.decode_eviction import slots_for
from vlkv.storage.manifest import TextFacts

MEMORY = 1 << 30
SLOTS = 8
FLOAT = np.dtype(np.float32).itemsize


@dataclass(frozen=True)
class Plan:
    """What the memory is for. Make one with `divide`.

    Fields:
        slots: lanes, the answers that run at once.
        capacity: tokens that a lane holds in each layer, `[L]`: the kept ones of a prompt and the new ones.
        prompt_tokens: the longest prompt that can be compressed; its whole cache is alive during prefill.
        memory: the limit, bytes. Weights and the runtime's own buffers are not in it.
        slot_bytes: of one lane.
        prompt_bytes: of the longest prompt's cache, scores and embeddings.
    """

    slots: int
    capacity: tuple[int, ...]
    prompt_tokens: int
    memory: int
    slot_bytes: int
    prompt_bytes: int

    @property
    def bytes(self) -> int:
        """The most that caches take at any time."""
        return self.slots * self.slot_bytes + self.prompt_bytes

    def check(self, sequence: Prepared) -> None:
        """Refuses what can never run here, naming the limit: a `PromptError` or `MemoryLimitError`."""
        length, least = len(sequence.prompt.token_ids), min(self.capacity)
        slot = f"a slot of this server holds {least} tokens a layer (memory {show(self.memory)}, slots {self.slots})"
        new = slots_for(sequence.policy, sequence.budget, length, sequence.max_new_tokens)
        if sequence.policy.keeps_all:
            if length + sequence.max_new_tokens > least:
                raise MemoryLimitError(
                    f"policy {sequence.policy.name!r} needs room for {length} prompt and {new} new tokens, {slot}: "
                    "ask for fewer new tokens or another policy, or start it with fewer slots or more memory"
                )
            return
        if length > self.prompt_tokens:
            raise PromptError(
                f"the prompt has {length} tokens, this server takes {self.prompt_tokens} at most "
                f"(memory {show(self.memory)})"
            )
        wanted = max(round(sequence.budget * len(self.capacity) * length), len(self.capacity))
        most = [min(slots - new, length) for slots in self.capacity]
        if min(most) < 1 or sum(most) < wanted:
            raise MemoryLimitError(
                f"budget {sequence.budget:g} of {length} prompt tokens and {sequence.max_new_tokens} new ones need "
                f"{-(-wanted // len(self.capacity)) + new} tokens a layer, {slot}: ask for a smaller budget or "
                "fewer new tokens, or start it with fewer slots or more memory"
            )


def divide(
    text: TextFacts,
    hidden: int,
    slots: int = SLOTS,
    memory: int = MEMORY,
    capacity: int | Sequence[int] | None = None,
    prompt_tokens: int | None = None,
) -> Plan:
    """Divides `memory` bytes. What is not given gets the half of it, or all that the model has use for.

    Raises:
        MemoryLimitError: a number under 1, or more than the memory holds.
    """
    layers, most = text.layers, text.max_positions
    token = text.kv_heads * text.head_dim * 2 * FLOAT
    prompt_token = layers * (token + text.kv_heads * FLOAT) + hidden * FLOAT
    for name, value in (("slots", slots), ("memory", memory), ("prompt_tokens", prompt_tokens)):
        if value is not None and value < 1:
            raise MemoryLimitError(f"{name} {value} is under 1")
    if prompt_tokens is None:
        taken = 0 if capacity is None else slots * token * sum(_each(capacity, layers))
        free = memory - taken if taken else memory // 2
        prompt_tokens = max(1, min(most, free // prompt_token))
    if capacity is None:
        capacity = min(most, (memory - prompt_tokens * prompt_token) // (slots * layers * token))
    each = _each(capacity, layers)
    plan = Plan(slots, each, prompt_tokens, memory, token * sum(each), prompt_tokens * prompt_token)
    if min(each) < 1 or plan.bytes > memory:
        needed = max(plan.bytes, slots * layers * token + plan.prompt_bytes)
        raise MemoryLimitError(
            f"memory {show(memory)} does not hold {slots} slots of {max(1, max(each))} tokens and a prompt of "
            f"{prompt_tokens}: that takes {show(needed)}"
        )
    return plan


def _each(capacity: int | Sequence[int], layers: int) -> tuple[int, ...]:
    each = (capacity,) * layers if isinstance(capacity, int) else tuple(capacity)
    if len(each) != layers:
        raise MemoryLimitError(f"capacity has {len(each)} numbers for {layers} layers")
    return each


def show(size: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{size / 2**30:.4g} GiB" if size >= 2**30 else f"{size / 2**20:.4g} MiB"
