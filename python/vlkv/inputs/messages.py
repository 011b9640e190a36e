"""Chats as prompts: a whole chat, or the next turn of a conversation whose earlier turns have already run.

The token ids of earlier turns do not change, and answers keep their generated tokens: only the text after the last
answer is tokenised, so nothing has to run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from vlkv.errors import PromptError
from vlkv.inputs.layouts import Layout
from vlkv.inputs.prompt import Prompt, expand, plain, render
from vlkv.inputs.tokenizer import Tokenizer
from vlkv.storage.manifest import Manifest


class Picture(Enum):
    """The place of a picture in a message."""

    HERE = "picture"


PICTURE = Picture.HERE


@dataclass(frozen=True)
class Message:
    """One turn of a chat: its role (`system`, `user` or `assistant`), and its texts and pictures in their order."""

    role: str
    parts: tuple[str | Picture, ...]

    @property
    def text(self) -> str:
        """The texts, without pictures."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> int:
        """The number of pictures."""
        return sum(part is PICTURE for part in self.parts)


def build_chat(
    messages: Sequence[Message], pictures: Sequence[Layout], tokenizer: Tokenizer, manifest: Manifest
) -> Prompt:
    """Renders a whole chat with the checkpoint's template, with the beginning of the model's answer at its end.

    `pictures` are the layouts of all messages' pictures, in their order.

    Templates differ in the form of a message's content: a list of parts, a text, or a text only if there is no
    picture. The first form whose rendering contains every text and every picture is used.

    Raises:
        PromptError: the chat is empty, a text contains the image token, the checkpoint has no template, the template
            accepts none of the forms, or there are more tokens than positions.
    """
    image, special = manifest.image, tokenizer.special_tokens
    if not any(message.text.strip() for message in messages):
        raise PromptError("the prompt is empty")
    if any(image.token in message.text for message in messages):
        raise PromptError(f"a message's text holds {image.token}; give a picture as a part of its own")
    if manifest.chat_template is None:
        if len(messages) > 1:
            raise PromptError("this checkpoint has no chat template: give one message of role 'user'")
        whole = _as_text(messages[0], image.token)
    else:
        whole = _rendered(messages, manifest.chat_template, image.token, special)
    bos = special.get("bos_token")
    ids = tokenizer.encode(whole, add_special_tokens=bos is None or not whole.startswith(bos))
    return expand(whole, np.array(ids, np.int64), pictures, image, manifest.text.max_positions)


def _rendered(messages: Sequence[Message], template: str, token: str, special: dict[str, str]) -> str:
    count, failure = sum(message.images for message in messages), ""
    for as_parts in (lambda _: True, lambda message: message.images > 0, lambda _: False):
        given = [
            {"role": one.role, "content": _as_parts(one) if as_parts(one) else _as_text(one, token)}
            for one in messages
        ]
        try:
            whole = render(template, given, special)
        except PromptError as error:
            failure = failure or str(error)
            continue
        texts = all(part.strip() in whole for one in messages for part in one.parts if isinstance(part, str))
        if texts and whole.count(token) == count and "{'type': 'text'" not in whole:
            return whole
    raise PromptError(failure or "chat template leaves out a message or a picture")


def _as_parts(message: Message) -> list[dict[str, str]]:
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
        for part in message.parts
    ]


def _as_text(message: Message, token: str) -> str:
    return "".join(part if isinstance(part, str) else f"{token}\n" for part in message.parts)


@dataclass(frozen=True)
class ChatTurn:
    """A question with its number of pictures, and its answer's text, None before it is answered."""

    text: str
    images: int
    answer: str | None = None


def next_prompt(
    before: Prompt,
    answer_ids: Sequence[int],
    turns: Sequence[ChatTurn],
    tokenizer: Tokenizer,
    manifest: Manifest,
    raw: bool = False,
    pictures: Sequence[Layout] = (),
) -> tuple[Prompt, int]:
    """Returns the whole conversation as a prompt, and the index of the newest turn's first token.

    Args:
        before: the conversation up to the last answer.
        answer_ids: the last answer without an end token, which the template may or may not write.
        turns: all turns; the last has no answer.
        tokenizer: the checkpoint's tokenizer.
        manifest: the model's manifest.
        raw: whether to use the text without the template.
        pictures: the layouts of the newest turn's pictures.

    Raises:
        PromptError: the question is empty, it has more or fewer places than pictures, there are more tokens than
            positions, or the template renders earlier turns differently than before.
    """
    newest, image, special = turns[-1], manifest.image, tokenizer.special_tokens
    if not (newest.text if raw else newest.text.strip()):
        raise PromptError("the prompt is empty")
    places = newest.text.count(image.token)
    if places and places != newest.images:
        raise PromptError(f"prompt has {places} {image.token} for {newest.images} given pictures")
    if raw or manifest.chat_template is None:
        tail = plain(newest.text, newest.images, image.token)
        whole = before.text + (turns[-2].answer or "") + tail
        ids = tokenizer.encode(tail, add_special_tokens=False)
    else:
        whole, end = _continued(before.text, turns, manifest.chat_template, image.token, special)
        ids = _encoded_from(whole, end, tokenizer)
    done = [*before.token_ids.tolist(), *answer_ids]
    more = expand(whole, np.array(ids, np.int64), pictures, image, None)
    token_ids = np.concatenate([np.array(done, np.int64), more.token_ids])
    limit = manifest.text.max_positions
    if len(token_ids) >= limit:
        raise PromptError(f"conversation has {len(token_ids)} tokens; the model has {limit} positions")
    positions = np.concatenate([before.image_positions, more.image_positions + len(done)])
    last = more.last_image + len(done) if pictures else before.last_image
    return Prompt(whole, token_ids, positions, last, (*before.pictures, *pictures)), len(done)


def _continued(
    before: str, turns: Sequence[ChatTurn], template: str, token: str, special: dict[str, str]
) -> tuple[str, int]:
    """The rendered text of all turns, and the index where the last answer ends in it."""
    answer = (turns[-2].answer or "").strip()
    failure = ""
    for as_parts in (True, False):
        try:
            whole = render(template, _messages(turns, token, as_parts), special)
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


def _messages(turns: Sequence[ChatTurn], token: str, as_parts: bool) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for turn in turns:
        pictures = [] if token in turn.text else [{"type": "image"}] * turn.images
        asked: Any = [*pictures, {"type": "text", "text": turn.text}]
        messages.append(
            {"role": "user", "content": asked if as_parts else plain(turn.text, turn.images, token)}
        )
        if turn.answer is not None:
            said: Any = [{"type": "text", "text": turn.answer}]
            messages.append({"role": "assistant", "content": said if as_parts else turn.answer})
    return messages


def _encoded_from(whole: str, end: int, tokenizer: Tokenizer) -> list[int]:
    """The ids of the text from `end` on, tokenised within the whole text if there is a token boundary at `end`."""
    first = tokenizer.encode(whole[:end], add_special_tokens=False)
    both = tokenizer.encode(whole, add_special_tokens=False)
    if both[: len(first)] == first:
        return both[len(first) :]
    return tokenizer.encode(whole[end:], add_special_tokens=False)
