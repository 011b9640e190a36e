"""The `Question` record: one prompt with its pictures and settings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlkv.errors import ImageError, PromptError, quoted
from vlkv.inputs.messages import Message
from vlkv.inputs.video import videos_of
from vlkv.policies.builtin import DEFAULT_POLICY
from vlkv.policies.policy import Policy

MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class Question:
    """One prompt of a batch; the fields are the arguments of `Engine.generate`.

    With `messages` the prompt is a whole chat, and `prompt` is not looked at; the pictures are those of the messages,
    in their order. The fields behind it are those of `Sampling`, but for the last two: `videos`, each a path, bytes, an
    array or a list of pictures (see `vlkv.inputs.video.Video`), and `frames`, how many each is sampled down to.
    """

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
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    min_new_tokens: int | None = None
    suppress_tokens: Sequence[int] | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    raw: bool = False
    scores: bool = False
    messages: Sequence[Message] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    json_schema: str | None = None
    videos: Sequence[Any] = ()
    frames: int | None = None
    prune: str | None = None
    recall: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise PromptError(f"the prompt is a {type(self.prompt).__name__}; a text is wanted")
        images: Any = self.images
        if images is None:
            images = ()
        elif isinstance(images, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(
            images, "convert"
        ):
            images = (images,)
        elif _is_list(images):
            images = tuple(images)
        else:
            raise ImageError(
                f"images is a {type(images).__name__}; a list of paths, bytes or Pillow images is wanted, such as "
                "PIL.Image.fromarray makes of an array"
            )
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "videos", videos_of(self.videos))
        messages: Any = self.messages
        right = isinstance(messages, Sequence) and all(isinstance(one, Message) for one in messages)
        if not right:
            raise PromptError(f"messages {quoted(messages)} is not a list of Message")
        for name in ("raw", "scores"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise PromptError(f"{name} {quoted(getattr(self, name))} is neither True nor False")
        if self.frames is not None and not (type(self.frames) is int and self.frames > 0):
            raise ImageError(f"frames is {quoted(self.frames)}; a whole number of frames from 1 on is wanted")


def _is_list(value: object) -> bool:
    """Whether a value is several pictures: neither an opened file, a mapping, nor an array that is one picture."""
    if isinstance(value, Mapping) or hasattr(value, "read"):
        return False
    return isinstance(value, Iterable) and len(getattr(value, "shape", (1,))) == 1
