"""The fidelity of an arm: teacher forcing with the reference's own answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlkv.bench.derive import Row
from vlkv.bench.prompts import Asked
from vlkv.bench.timing import EngineArm
from vlkv.generation.forced import perplexity, token_loss


def fidelity(arms: Sequence[EngineArm], asked: Asked, tokens: Sequence[int]) -> list[Row]:
    """One row per arm: the perplexity of the tokens, and the share of them that are the arm's first choice.

    Args:
        arms: engines of one checkpoint under their budgets.
        asked: the prompt.
        tokens: the reference arm's answer, at least one token.
    """
    return [_row(arm, asked, tokens) for arm in arms]


def _row(arm: EngineArm, asked: Asked, tokens: Sequence[int]) -> Row:
    loss, agreed = 0.0, 0
    for token, logits in zip(tokens, arm.forced(asked, tokens[:-1]), strict=True):
        loss += float(token_loss(logits[np.newaxis], token)[0])
        agreed += int(logits.argmax()) == token
    return {
        "prompt_tokens": len(asked.prompt.token_ids),
        "arm": arm.label,
        "tokens": len(tokens),
        "perplexity": perplexity(loss, len(tokens)),
        "agreement": agreed / len(tokens),
    }
