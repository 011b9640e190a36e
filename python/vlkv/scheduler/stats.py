"""What a scheduler counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Stats:
    """Counters since the start, and the present state.

    Attributes:
        submitted: accepted requests.
        refused: requests refused because the queue was full.
        failed: requests that ended with an error.
        finished: ended requests by finish reason.
        prompt_tokens, image_tokens, kept_tokens: summed over prefilled prompts; kept tokens are the mean over layers.
        generated_tokens: summed over all answers.
        alive: 1 while the scheduler accepts requests, else 0.
        slots, slots_used, waiting: lanes, lanes in use (a prompt in prefill uses one), requests in the queue; now.
        cache_bytes: bytes of the tokens that running answers hold or may still add; now.
        cache_bytes_limit: the most bytes that caches may occupy.
        pixel_bytes: bytes of pictures that prefill has not read yet; now.
        reuse_hits, reuse_misses: prompts with pictures whose beginning was known from an earlier request, and others.
        reused_tokens: prompt tokens that were not run again.
        picture_hits, picture_misses: pictures whose features were needed, and were known or not.
        reuse_bytes, reuse_bytes_limit: bytes that are kept for later requests, now and at most.
        steps: decode steps.
        rows: running answers, summed over these steps.
        prefill_seconds, step_seconds, pick_seconds: time in prefill, in the backend's decode steps, and in choosing
            tokens and turning them into text.
        own_seconds: the remaining time of the scheduler's loop: its own cost.
    """

    submitted: int = 0
    refused: int = 0
    failed: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    image_tokens: int = 0
    kept_tokens: int = 0
    generated_tokens: int = 0
    alive: int = 0
    slots: int = 0
    slots_used: int = 0
    waiting: int = 0
    cache_bytes: int = 0
    cache_bytes_limit: int = 0
    pixel_bytes: int = 0
    reuse_hits: int = 0
    reuse_misses: int = 0
    reused_tokens: int = 0
    picture_hits: int = 0
    picture_misses: int = 0
    reuse_bytes: int = 0
    reuse_bytes_limit: int = 0
    steps: int = 0
    rows: int = 0
    prefill_seconds: float = 0.0
    step_seconds: float = 0.0
    pick_seconds: float = 0.0
    own_seconds: float = 0.0
