"""A question to an engine, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlkv.policies.builtin import DEFAULT_POLICY
from vlkv.policies.policy import Policy

MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class Question:
    """One prompt of a batch; the fields are the arguments of `Engine.generate`."""

    prompt: str
    images: Sequence[Any] = ()
    policy: str | Policy = DEFAULT_POLICY
    budget: float | None = None
    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()
    raw: bool = False
    scores: bool = False
