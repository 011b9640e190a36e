"""What an answer comes with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkv.generation.logits import TokenLogprob


@dataclass
class Seconds:
    """Where the time went. `prefill` is the decoder over the prompt; scoring, splitting and evicting are `compress`."""

    vision: float = 0.0
    prefill: float = 0.0
    compress: float = 0.0
    decode: float = 0.0


@dataclass
class Result:
    """One answer.

    Attributes:
        text: the answer, without its stop string.
        token_ids: what was generated, the end token included.
        finish_reason: `stop` (end token or stop string) or `length`.
        prompt_tokens: tokens of the prompt, image tokens included.
        image_tokens: of these, image tokens.
        policy: its name.
        budget: the share of the prompt's cache that was asked for.
        kept_tokens: prompt tokens kept, per layer.
        sparsity: per layer, 0 where nothing was observed.
        cache_bytes: bytes of this prompt's cache arrays while decoding, room for new tokens included.
        cache_bytes_full: what the uncompressed cache would take.
        seconds: where the time went; in a batch, decoding is shared.
        tokens_per_second: decoded tokens by decoding time; the first token comes from prefill.
        positions: per layer the kept prompt positions `[Hkv, kept]`, None where all were.
        image_positions: `[N * P]`, which prompt tokens are image tokens.
        logprobs: where asked for, the log probability of each token of `token_ids`.
        scores: where asked for, per layer the prompt's scores `[Hkv, S]` float32: attention summed over the observed
            rows and the query heads of each KV head, not pooled; 0 where nothing is observed.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    prompt_tokens: int = 0
    image_tokens: int = 0
    policy: str = ""
    budget: float = 1.0
    kept_tokens: list[int] = field(default_factory=list)
    sparsity: list[float] = field(default_factory=list)
    cache_bytes: int = 0
    cache_bytes_full: int = 0
    seconds: Seconds = field(default_factory=Seconds)
    tokens_per_second: float = 0.0
    positions: list[NDArray[np.int32]] | None = None
    image_positions: NDArray[np.int64] | None = None
    logprobs: list[TokenLogprob] | None = None
    scores: list[NDArray[np.float32]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything but arrays and log probabilities, ready for JSON."""
        return {
            name: asdict(self.seconds) if name == "seconds" else value
            for name, value in vars(self).items()
            if name not in ("positions", "scores", "logprobs", "image_positions")
        }
