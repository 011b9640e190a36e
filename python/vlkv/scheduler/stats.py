"""What a scheduler counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Stats:
    """Counters since the start, and what is there now.

    Attributes:
        submitted: requests taken.
        refused: requests that met a full queue.
        failed: requests that ended with an error.
        finished: ended requests by finish reason.
        prompt_tokens, image_tokens, kept_tokens: of prompts prefilled; kept ones are the mean over layers, summed.
        generated_tokens: of all answers.
        alive: 1 while the scheduler takes requests, else 0.
        slots, slots_used, waiting: now; a prompt in prefill uses one of the slots, which are lanes.
        cache_bytes: of the tokens that running answers keep and may yet add, now.
        cache_bytes_limit: the most that caches may take.
        pixel_bytes: of the pictures of requests that wait or are in prefill, now.
        steps: decode steps.
        rows: answers in these steps, summed.
        prefill_seconds, step_seconds, pick_seconds: in the graphs over prompts; in decode steps of the backend;
            choosing tokens and turning them into text.
        own_seconds: everything else between two decode steps that is no prefill: the scheduler's own cost.
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
    steps: int = 0
    rows: int = 0
    prefill_seconds: float = 0.0
    step_seconds: float = 0.0
    pick_seconds: float = 0.0
    own_seconds: float = 0.0
