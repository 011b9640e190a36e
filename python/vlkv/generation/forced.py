"""Teacher forcing: the logits and the attention of each step over given tokens, under a policy.

Used for perplexity, for agreement with the full cache, and for cache hit rates (VL-Cache, arXiv 2410.23317, section 3).
"""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass, replace
from math import exp

import numpy as np

from vlkv.dtypes import Float32, Float64
from vlkv.errors import PolicyError, PromptError
from vlkv.generation.decode import feed
from vlkv.generation.prefill import prefill
from vlkv.generation.result import Result
from vlkv.generation.sequence import Sequence
from vlkv.model import Model
from vlkv.policies.windows import reached

MOST_LOSS = 700.0
"""The largest mean loss of a token whose exponential is still finite."""


@dataclass(frozen=True)
class ForcedStep:
    """One step: the prompt's end, or one given token.

    Fields:
        logits: the logits `[V]` of the token that follows.
        attention: if requested, this token's attention per layer, `[Hkv, C]` over the C valid slots, summed over the
            query heads of each KV head; its own slot is the last. None at the prompt's end. With the full cache slot n
            holds token n; after compression the first slots hold `result.positions`, in order.
    """

    logits: Float32
    attention: list[Float32] | None = None


class Forced:
    """Iterate for one step at the prompt's end and one after each given token.

    Attributes:
        result: the prompt's result, without an answer; set when the first step is yielded.
    """

    def __init__(
        self, model: Model, sequence: Sequence, tokens: abc.Sequence[int], attention: bool = False
    ) -> None:
        text = model.manifest.text
        most = text.max_positions - len(sequence.prompt.token_ids)
        if len(tokens) > most:
            raise PromptError(
                f"{len(tokens)} given tokens are more than the {most} positions behind the prompt"
            )
        for token in tokens:
            if not isinstance(token, int | np.integer) or not 0 <= token < text.vocab:
                raise PromptError(f"token {token!a:.80} is no id from 0 to {text.vocab - 1}")
        policy = sequence.policy
        if attention and policy.decode != "append":
            raise PolicyError(
                f"policy {policy.name!r}: attention is given for decode 'append' only, not {policy.decode!r}"
            )
        if attention and any(reached(text, len(sequence.prompt.token_ids) + len(tokens))):
            raise PolicyError(
                f"attention is given inside a sliding window of {text.layer_windows} tokens only: give fewer tokens"
            )
        self.result = Result()
        self._model, self._tokens, self._attention = model, tokens, attention
        self._sequence = replace(sequence, max_new_tokens=max(1, len(tokens)))

    def __iter__(self) -> abc.Iterator[ForcedStep]:
        model, sequence = self._model, self._sequence
        prefill(model, sequence)
        self.result = sequence.result
        yield ForcedStep(sequence.logits)
        for logits, decoder in feed(model, sequence.give_cache(), [sequence], self._tokens, self._attention):
            yield ForcedStep(logits[0].copy(), decoder.attention(0) if self._attention else None)


def token_loss(logits: Float32, token: int) -> Float64:
    """The negative log likelihood `[N]` that each row of logits `[N, V]` gives the token."""
    rows = logits.astype(np.float64)
    highest = rows.max(axis=1)
    loss: Float64 = highest + np.log(np.exp(rows - highest[:, np.newaxis]).sum(axis=1)) - rows[:, token]
    return loss


def perplexity(loss: float, tokens: int) -> float:
    """The perplexity of `tokens` tokens whose losses sum to `loss`."""
    return exp(min(loss / tokens, MOST_LOSS))
