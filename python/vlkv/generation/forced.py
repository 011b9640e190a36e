"""Tokens that are given, not chosen: logits of each step under a policy, and what each step attends to.

For perplexity, for agreement with the full cache, and for cache hit rates (VL-Cache, arXiv 2410.23317, section 3).
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

MOST_LOSS = 700.0
"""Of a token on average: its exponential is still a number."""


@dataclass(frozen=True)
class ForcedStep:
    """The prompt's end, or one given token.

    Fields:
        logits: `[V]`, of what follows it.
        attention: where asked for, per layer `[Hkv, C]`: this token's attention to the C valid slots, its own the last,
            summed over the query heads of each KV head; None at the prompt's end. With the full cache slot n holds
            token n, after compression the first hold `result.positions`, in order.
    """

    logits: Float32
    attention: list[Float32] | None = None


class Forced:
    """Iterate for a step at the prompt's end and one after each token; `result` is there from the first on.

    Attributes:
        result: of the prompt; without an answer.
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
    """-ln of the probability that each row of logits `[N, V]` gives the token, `[N]`."""
    rows = logits.astype(np.float64)
    highest = rows.max(axis=1)
    loss: Float64 = highest + np.log(np.exp(rows - highest[:, np.newaxis]).sum(axis=1)) - rows[:, token]
    return loss


def perplexity(loss: float, tokens: int) -> float:
    """Of that many tokens whose losses add up to `loss`."""
    return exp(min(loss / tokens, MOST_LOSS))
