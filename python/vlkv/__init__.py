"""vlkv: vision-language models with a tenth of the KV cache.

from vlkv import Engine
engine = Engine.load("ENGINE")
engine.generate("What is the total?", images=["a.png"], policy="vl-cache", budget=0.1).text
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlkv import ops
    from vlkv.engine import Engine
    from vlkv.errors import VlkvError
    from vlkv.generation.batch import Stream
    from vlkv.generation.chat import Conversation
    from vlkv.generation.question import Question
    from vlkv.generation.result import Result
    from vlkv.policies.builtin import POLICIES
    from vlkv.policies.policy import Policy

__all__ = [
    "POLICIES",
    "Conversation",
    "Engine",
    "Policy",
    "Question",
    "Result",
    "Stream",
    "VlkvError",
    "ops",
]

_HOME = {
    "Conversation": "vlkv.generation.chat",
    "Engine": "vlkv.engine",
    "POLICIES": "vlkv.policies.builtin",
    "Policy": "vlkv.policies.policy",
    "Question": "vlkv.generation.question",
    "Result": "vlkv.generation.result",
    "Stream": "vlkv.generation.batch",
    "VlkvError": "vlkv.errors",
}


def __getattr__(name: str) -> Any:
    """Loads a public name on first use, so that `import vlkv` is fast."""
    if name == "ops":
        return import_module("vlkv.ops")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'vlkv' has no attribute {name!r}")
