"""Chats as prompts: a whole chat, or the next turn of a conversation whose earlier turns have already run.

The token ids of earlier turns do not change, and answers keep their generated tokens: only the text after the last
answer is tokenised, so nothing has to run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from vlkv.errors import PromptError
from vlkv.inputs.prompt import (
    Medium,
    Prompt,
    check_places,
    check_size,
    expand,
    media_of,
    plain,
    render,
    unplaced,
)
from vlkv.inputs.tokenizer import Tokenizer
from vlkv.storage.manifest import Manifest


class Seen(Enum):
    """The place of a picture or a video in a message; the value is its type in chat templates."""

    PICTURE = "image"
    VIDEO = "video"


PICTURE, VIDEO = Seen.PICTURE, Seen.VIDEO


@dataclass(frozen=True)
class Message:
    """One turn of a chat: who says it (`system`, `user`, `assistant`), and its texts, pictures and videos in order."""

    role: str
    parts: tuple[str | Seen, ...]

    @property
    def text(self) -> str:
        """The texts, without pictures."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def seen(self) -> int:
        """How many pictures and videos."""
        return sum(isinstance(part, Seen) for part in self.parts)


def build_chat(
    messages: Sequence[Message], media: Sequence[Medium], tokenizer: Tokenizer, manifest: Manifest
) -> Prompt:
    """Renders a whole chat with the checkpoint's template, with the beginning of the model's answer at its end.

    `media` are all messages' pictures and videos, in their order.

    Templates differ in the form of a message's content: a list of parts, a text, or a text only if there is no
    picture. The first form whose rendering contains every text and every picture is used.

    Raises:
        PromptError: the chat is empty, a text contains the image token, the checkpoint has no template, the template
            accepts none of the forms, or there are more tokens than positions.
    """
    special = tokenizer.special_tokens
    parts = [part for message in messages for part in message.parts]
    characters = sum(len(part) for part in parts if isinstance(part, str))
    check_size(characters, max(len(messages), len(parts)), manifest.text.max_positions)
    if not any(message.text.strip() for message in messages):
        raise PromptError("the prompt is empty")
    for medium in media:
        if any(medium.token in message.text for message in messages):
            word = "picture" if medium.name == "image" else "video"
            raise PromptError(f"a message's text holds {medium.token}; give a {word} as a part of its own")
    if manifest.chat_template is None:
        if len(messages) > 1:
            raise PromptError("this checkpoint has no chat template: give one message of role 'user'")
        whole = _as_text(messages[0], media)
    else:
        whole = _rendered(messages, manifest.chat_template, media, special)
    bos = special.get("bos_token")
    ids = tokenizer.encode(whole, add_special_tokens=bos is None or not whole.startswith(bos))
    return expand(whole, np.array(ids, np.int64), media, manifest.text.max_positions)


def _rendered(
    messages: Sequence[Message], template: str, media: Sequence[Medium], special: dict[str, str]
) -> str:
    failure = ""
    for as_parts in (lambda _: True, lambda message: message.seen > 0, lambda _: False):
        given = [
            {"role": one.role, "content": _as_parts(one) if as_parts(one) else _as_text(one, media)}
            for one in messages
        ]
        try:
            whole = render(template, given, special)
        except PromptError as error:
            failure = failure or str(error)
            continue
        texts = all(part.strip() in whole for one in messages for part in one.parts if isinstance(part, str))
        counts = all(
            whole.count(medium.token) == _count(messages, medium) == len(medium.given) for medium in media
        )
        if texts and counts and "{'type': 'text'" not in whole:
            return whole
    raise PromptError(failure or "chat template leaves out a message, a picture or a video")


def _count(messages: Sequence[Message], medium: Medium) -> int:
    return sum(part is Seen(medium.name) for message in messages for part in message.parts)


def _as_parts(message: Message) -> list[dict[str, str]]:
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": part.value}
        for part in message.parts
    ]


def _as_text(message: Message, media: Sequence[Medium]) -> str:
    tokens = {medium.name: medium.token for medium in media}
    return "".join(
        part if isinstance(part, str) else f"{tokens.get(part.value, '')}\n" for part in message.parts
    )


@dataclass(frozen=True)
class ChatTurn:
    """A question with its numbers of pictures and videos, and its answer's text; None before it is answered."""

    text: str
    images: int
    answer: str | None = None
    videos: int = 0


def next_prompt(
    before: Prompt,
    answer_ids: Sequence[int],
    turns: Sequence[ChatTurn],
    tokenizer: Tokenizer,
    manifest: Manifest,
    raw: bool = False,
    media: Sequence[Medium] = (),
) -> tuple[Prompt, int]:
    """Returns the whole conversation as a prompt, and the index of the newest turn's first token.

    Args:
        before: the conversation up to the last answer.
        answer_ids: the last answer without an end token, which the template may or may not write.
        turns: all turns; the last has no answer.
        tokenizer: the checkpoint's tokenizer.
        manifest: the model's manifest.
        raw: whether to use the text without the template.
        media: the newest turn's pictures and videos.

    Raises:
        PromptError: the question is empty, it has more or fewer places than pictures, there are more tokens than
            positions, or the template renders earlier turns differently than before.
    """
    newest, special = turns[-1], tokenizer.special_tokens
    media = media or media_of((), manifest.image, (), manifest.video)
    check_size(len(newest.text), 1, manifest.text.max_positions)
    if not (newest.text if raw else newest.text.strip()):
        raise PromptError("the prompt is empty")
    check_places(newest.text, media)
    if raw or manifest.chat_template is None:
        tail = plain(newest.text, media)
        whole = before.text + (turns[-2].answer or "") + tail
        ids = tokenizer.encode(tail, add_special_tokens=False)
    else:
        whole, end = _continued(before.text, turns, manifest.chat_template, media, special)
        ids = encoded_from(whole, end, tokenizer)
    done = [*before.token_ids.tolist(), *answer_ids]
    more = expand(whole, np.array(ids, np.int64), media, None)
    token_ids = np.concatenate([np.array(done, np.int64), more.token_ids])
    limit = manifest.text.max_positions
    if len(token_ids) >= limit:
        raise PromptError(f"conversation has {len(token_ids)} tokens; the model has {limit} positions")
    positions = np.concatenate([before.image_positions, more.image_positions + len(done)])
    last = more.last_image + len(done) if more.pictures else before.last_image
    return Prompt(whole, token_ids, positions, last, (*before.pictures, *more.pictures)), len(done)


def _continued(
    before: str, turns: Sequence[ChatTurn], template: str, media: Sequence[Medium], special: dict[str, str]
) -> tuple[str, int]:
    """The rendered text of all turns, and the index where the last answer ends in it."""
    answer = (turns[-2].answer or "").strip()
    failure = ""
    for as_parts in (True, False):
        try:
            whole = render(template, _messages(turns, media, as_parts), special)
        except PromptError as error:
            failure = failure or str(error)
            continue
        rest = whole[len(before) :]
        gap = len(rest) - len(rest.lstrip())
        if whole.startswith(before) and rest[gap:].startswith(answer):
            return whole, len(before) + (gap + len(answer) if answer else 0)
    raise PromptError(
        failure or "the chat template renders earlier turns differently in a later turn; ask with raw=True"
    )


def _messages(turns: Sequence[ChatTurn], media: Sequence[Medium], as_parts: bool) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for turn in turns:
        counts = {"image": turn.images, "video": turn.videos}
        own = [replace(medium, given=[()] * counts[medium.name]) for medium in media]
        seen = [{"type": medium.name} for medium in unplaced(turn.text, own)]
        asked: Any = [*seen, {"type": "text", "text": turn.text}]
        messages.append({"role": "user", "content": asked if as_parts else plain(turn.text, own)})
        if turn.answer is not None:
            said: Any = [{"type": "text", "text": turn.answer}]
            messages.append({"role": "assistant", "content": said if as_parts else turn.answer})
    return messages


def encoded_from(whole: str, end: int, tokenizer: Tokenizer) -> list[int]:
    """The ids of the text from `end` on, tokenised within the whole text if there is a token boundary at `end`."""
    first = tokenizer.encode(whole[:end], add_special_tokens=False)
    both = tokenizer.encode(whole, add_special_tokens=False)
    if both[: len(first)] == first:
        return both[len(first) :]
    return tokenizer.encode(whole[end:], add_special_tokens=False)
