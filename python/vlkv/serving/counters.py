"""Names and descriptions of the scheduler's counters, for all metrics endpoints."""

from __future__ import annotations

COUNTERS = {
    "submitted": "Requests taken.",
    "refused": "Requests that met a full queue.",
    "failed": "Requests that ended with an error.",
    "prompt_tokens": "Prompt tokens read, image tokens included.",
    "image_tokens": "Image tokens read.",
    "kept_tokens": "Prompt tokens kept, mean over layers.",
    "reuse_hits": "Prompts with pictures whose beginning was known from an earlier request.",
    "reuse_misses": "Prompts with pictures whose beginning was not known.",
    "reused_tokens": "Prompt tokens that were not run again.",
    "picture_hits": "Pictures whose features were needed and known.",
    "picture_misses": "Pictures that the vision tower had to read.",
    "generated_tokens": "Tokens generated.",
    "steps": "Decode steps.",
    "prefill_seconds": "Seconds spent in reading prompts.",
    "step_seconds": "Seconds spent in decode steps.",
    "pick_seconds": "Seconds spent in choosing tokens and turning them into text.",
    "own_seconds": "Seconds that the scheduler itself took.",
}
GAUGES = {
    "alive": "1 while requests are taken, 0 once the scheduler has stopped.",
    "slots": "Answers that can run at once.",
    "slots_used": "Answers that run, and the prompt that is read.",
    "waiting": "Requests in the queue.",
    "cache_bytes": "Cache that running answers hold, room for new tokens included.",
    "pixel_bytes": "Pixels of requests whose pictures are not read yet.",
    "reuse_bytes": "Features, keys and values that are kept for later requests.",
    "reuse_bytes_limit": "The most of these; they are part of what caches may take.",
    "cache_bytes_limit": "The most that caches may take.",
}
REASONS = ("stop", "length", "cancelled", "deadline")
