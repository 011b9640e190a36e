"""Names and descriptions of the scheduler's counters, for all metrics endpoints."""

from __future__ import annotations

COUNTERS = {
    "submitted": "Requests taken.",
    "refused": "Requests that met a full queue.",
    "failed": "Requests that ended with an error.",
    "prompt_tokens": "Prompt tokens read, image tokens included.",
    "image_tokens": "Image tokens read.",
    "kept_tokens": "Prompt tokens kept, mean over layers.",
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
    "cache_bytes_limit": "The most that caches may take.",
}
REASONS = ("stop", "length", "cancelled", "deadline")
