"""The `Result` record: an answer with its statistics."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkv.generation.logits import TokenLogprob


@dataclass
class Seconds:
    """Seconds spent. `prefill` is the decoder over the prompt; `compress` is scoring, splitting and evicting."""

    vision: float = 0.0
    prefill: float = 0.0
    compress: float = 0.0
    decode: float = 0.0


@dataclass
class Result:
    """One answer.

    Attributes:
        text: the answer, without its stop string.
        token_ids: the generated tokens, including the end token.
        finish_reason: `stop` (end token or stop string) or `length`.
        prompt_tokens: tokens of the prompt, image tokens included.
        image_tokens: how many of these are image tokens.
        pruned_tokens: how many of these were left out before prefill.
        cached_tokens: how many of the prompt's first tokens were reused from an earlier request.
        policy: the policy's name.
        budget: the share of the prompt's cache that was requested.
        kept_tokens: the number of prompt tokens kept, per layer.
        sparsity: the attention's sparsity per layer; 0 if nothing was observed.
        cache_bytes: bytes of this sequence's cache during decoding, including slots for new tokens.
        recall_bytes: bytes of its evicted tokens in host memory; 0 unless the policy recalls them.
        recall_bytes_read: bytes that its decoded tokens read of these, all together.
        cache_bytes_full: bytes that the uncompressed cache would need.
        seconds: the time spent; the sequences of a batch share the decoding time.
        tokens_per_second: decoded tokens divided by decoding time; the first token comes from prefill.
        positions: the kept prompt positions per layer, `[Hkv, kept]`; None if all were kept.
        image_positions: the indices `[N * P]` of the prompt's image tokens.
        logprobs: if requested, the log probability of each token of `token_ids`.
        scores: if requested, the prompt's scores per layer, `[Hkv, S]` float32: attention summed over the observation
            window and the query heads of each KV head, before pooling; 0 if nothing is observed, and for pruned tokens.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    prompt_tokens: int = 0
    image_tokens: int = 0
    pruned_tokens: int = 0
    cached_tokens: int = 0
    policy: str = ""
    budget: float = 1.0
    kept_tokens: list[int] = field(default_factory=list)
    sparsity: list[float] = field(default_factory=list)
    cache_bytes: int = 0
    recall_bytes: int = 0
    recall_bytes_read: int = 0
    cache_bytes_full: int = 0
    seconds: Seconds = field(default_factory=Seconds)
    tokens_per_second: float = 0.0
    positions: list[NDArray[np.int32]] | None = None
    image_positions: NDArray[np.int64] | None = None
    logprobs: list[TokenLogprob] | None = None
    scores: list[NDArray[np.float32]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields except arrays and log probabilities, ready for JSON."""
        return {
            name: asdict(self.seconds) if name == "seconds" else value
            for name, value in vars(self).items()
            if name not in ("positions", "scores", "logprobs", "image_positions")
        }
