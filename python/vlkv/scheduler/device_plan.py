"""What a device's memory is for: lanes of one size, taken at once, and the prompts in prefill beside them.

On a device memory is there or not, page by page is no choice: a lane is as large as the largest answer that it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

from vlkv.backend.device.backend import DeviceBackend
from vlkv.errors import EngineError, MemoryLimitError
from vlkv.scheduler.plan import FLOAT, SLOTS, Plan, check_sizes, each_layer, show
from vlkv.storage.manifest import BYTES, TextFacts, token_bytes

SHARE = 0.8
"""Of the free memory that caches take where none is said: the rest is for working memory that grows."""
ROW_BYTES = 256
"""What a lane's arrays begin on."""


def check_lanes(backend: DeviceBackend) -> None:
    """Refuses an engine whose caches can't be lanes, with an `EngineError`."""
    if not backend.in_place or backend.limits.cache == "static":
        raise EngineError(
            f"this engine's caches are {backend.limits.cache}; many requests at once need caches that are updated in "
            "place at any size: build it with --cache in-place"
        )


def row_step(text: TextFacts, dtype: str) -> int:
    """Slots of a layer whose bytes are a multiple of `ROW_BYTES`."""
    return ROW_BYTES // gcd(ROW_BYTES, text.kv_heads * text.head_dim * BYTES[dtype])


def divide_device(
    backend: DeviceBackend,
    hidden: int,
    slots: int = SLOTS,
    memory: int | None = None,
    capacity: int | Sequence[int] | None = None,
    prompt_tokens: int | None = None,
) -> Plan:
    """A plan for `memory` bytes of a device; lanes take half of it where neither they nor prompts are given.

    There are no more lanes than the engine was built for prompts at once.

    Raises:
        EngineError: the engine's caches can't be lanes.
        MemoryLimitError: a number under 1, or more than the memory or the engine holds.
    """
    check_lanes(backend)
    text, limits = backend.text, backend.limits
    memory = int(backend.device.free * SHARE) if memory is None else memory
    check_sizes(slots, memory, capacity, prompt_tokens)
    slots = min(slots, limits.batch)
    token = token_bytes(text, backend.dtype)
    prompt = text.layers * (token + text.kv_heads * FLOAT) + hidden * FLOAT
    step, most = row_step(text, backend.dtype), min(limits.capacity, text.max_positions)
    if capacity is None:
        share = memory // 2 if prompt_tokens is None else memory - prompt_tokens * prompt
        capacity = min(most, share // (slots * text.layers * token)) // step * step
    given = each_layer(capacity, text.layers)
    lanes = tuple(-(-tokens // step) * step for tokens in given)
    if min(lanes) < 1 or max(lanes) > limits.capacity:
        raise MemoryLimitError(
            f"{slots} slots of {max(lanes)} tokens: {show(memory)} of the device give each slot none, ask for fewer "
            "slots or more memory"
            if min(lanes) < 1
            else f"a slot of {max(lanes)} tokens a layer, the engine was built for {limits.capacity}: ask for a "
            "smaller capacity, or build it with a larger --capacity"
        )
    reserved = slots * sum(lanes) * token
    longest = min(most, max(0, memory - reserved) // prompt) if prompt_tokens is None else prompt_tokens
    if reserved + max(1, longest) * prompt > memory:
        raise MemoryLimitError(
            f"memory {show(memory)} does not hold {slots} slots of {max(lanes)} tokens and a prompt of "
            f"{max(1, longest)}: that takes {show(reserved + max(1, longest) * prompt)}"
        )
    return Plan(slots, lanes, longest, memory, token, prompt, 0, text, reserved)
