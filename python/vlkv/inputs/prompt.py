"""Turns a user's text, pictures and videos into token ids, with the same results as Hugging Face's processors.

Pictures replace the image tokens (`<image>`) in the text; without image tokens they precede the text. Videos replace
the video tokens (`<video>`) in the same way; without them they stand after the pictures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from vlkv.errors import PromptError
from vlkv.inputs.layouts import Layout
from vlkv.inputs.template_limits import counted, limited
from vlkv.inputs.tokenizer import SPLICE, Tokenizer
from vlkv.storage.files import reason
from vlkv.storage.image_facts import ImageFacts, VideoFacts

if TYPE_CHECKING:
    import jinja2

CHARACTERS = 16
"""Characters for each position of a model that a prompt may have; English text has four or five a token."""
LEAST_CHARACTERS = 1 << 16
"""Characters that a prompt of any model may have."""
TEMPLATE = 1 << 18
"""The longest chat template, in characters; compiling a longer one takes seconds."""
_LISTED = "{'type': 'text'"


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prompt that is ready for the model.

    Fields:
        text: what was tokenised, with one image token for each picture and one video token for each video.
        token_ids: int64 `[S]`; each picture, and each frame of a video, is the tokens of its layout.
        image_positions: int64, where the tokens are that get features, all pictures' one after the other, ascending.
        last_image: index of the last token of the last picture or video; -1 where there is none.
        pictures: the layouts of the pictures and of the videos' frames, in the order in which they stand.
    """

    text: str
    token_ids: NDArray[np.int64]
    image_positions: NDArray[np.int64]
    last_image: int
    pictures: tuple[Layout, ...] = ()

    @property
    def placed(self) -> tuple[tuple[int, Layout], ...]:
        """The position of the first token of each picture and frame, and its layout."""
        counts = [len(layout.sources) for layout in self.pictures]
        # the first token of every layout has features
        firsts = self.image_positions[np.cumsum([0, *counts[:-1]])[: len(counts)]].tolist()
        return tuple(zip(firsts, self.pictures, strict=True))


@dataclass(frozen=True)
class Medium:
    """A prompt's pictures, or its videos.

    Fields:
        name: what errors and templates call one: `image` or `video`.
        token: the text that stands for one.
        token_id: its id in a tokenised text.
        given: the layouts of each: one of a picture, one a frame of a video.
    """

    name: Literal["image", "video"]
    token: str
    token_id: int
    given: Sequence[Sequence[Layout]]

    @property
    def count(self) -> str:
        """How many there are, in words."""
        word = "picture" if self.name == "image" else "video"
        return f"{len(self.given)} {word}" + ("" if len(self.given) == 1 else "s")


def media_of(
    pictures: Sequence[Layout],
    image: ImageFacts,
    videos: Sequence[Sequence[Layout]] = (),
    video: VideoFacts | None = None,
) -> tuple[Medium, ...]:
    """A prompt's pictures, and its videos where the model takes some."""
    place = SPLICE if image.spliced else image.token_id
    found = [Medium("image", image.token, place, [(layout,) for layout in pictures])]
    if video is not None:
        found.append(Medium("video", video.frame.token, video.frame.token_id, videos))
    return tuple(found)


def build_prompt(
    text: str,
    media: Sequence[Medium],
    tokenizer: Tokenizer,
    *,
    chat_template: str | None = None,
    raw: bool = False,
    max_positions: int | None = None,
) -> Prompt:
    """Put text, pictures and videos into the checkpoint's chat template, tokenise, and make room for what is seen.

    Args:
        text: what the user says; every token of a medium in it is the place of a picture or a video.
        media: its pictures and videos.
        tokenizer: the checkpoint's.
        chat_template: the checkpoint's Jinja template, None where it has none.
        raw: take the text as it is, past the template.
        max_positions: how many positions the model has.

    BOS is added as the tokenizer does, unless the text already begins with it. Raises `PromptError` if the text is
    empty or has lone surrogates, the numbers of pictures and places differ, the template fails, or there are more
    tokens than positions.
    """
    check_size(len(text), 1, max_positions)
    if not (text if raw else text.strip()):
        raise PromptError("the prompt is empty")
    check_places(text, media)
    if raw or chat_template is None:
        whole = plain(text, media)
    else:
        whole = _chat(text, media, chat_template, tokenizer.special_tokens)
    bos = tokenizer.special_tokens.get("bos_token")
    ids = tokenizer.encode(whole, add_special_tokens=bos is None or not whole.startswith(bos))
    return expand(whole, np.array(ids, np.int64), media, max_positions)


def check_size(characters: int, parts: int, max_positions: int | None) -> None:
    """Refuses what can't fit before it costs anything: the template's and the tokenizer's time grow with the text.

    Args:
        characters: of all texts of the prompt.
        parts: how many texts, pictures and messages it has.
        max_positions: how many positions the model has; None allows everything.

    Raises:
        PromptError: more than `CHARACTERS` for each position, or more parts than positions.
    """
    if max_positions is None:
        return
    most = max(LEAST_CHARACTERS, CHARACTERS * max_positions)
    if characters > most:
        raise PromptError(
            f"prompt has {characters} characters; the model has {max_positions} positions, and the limit is {most}"
        )
    if parts > max_positions:
        raise PromptError(f"prompt has {parts} messages and parts; the model has {max_positions} positions")


def check_places(text: str, media: Sequence[Medium]) -> None:
    """Raise `PromptError` where a text has places for another number of pictures or videos than were given."""
    for medium in media:
        places = text.count(medium.token)
        if places and places != len(medium.given):
            number, _, word = medium.count.partition(" ")
            raise PromptError(f"prompt has {places} {medium.token} for {number} given {word}")


def unplaced(text: str, media: Sequence[Medium]) -> list[Medium]:
    """The pictures and videos, an entry each, whose places the text does not say."""
    return [medium for medium in media if medium.token not in text for _ in medium.given]


def plain(text: str, media: Sequence[Medium]) -> str:
    """The text with image and video tokens before it, a line each, unless it says itself where they go."""
    return "".join(f"{medium.token}\n" for medium in unplaced(text, media)) + text


def expand(
    text: str,
    ids: NDArray[np.int64],
    media: Sequence[Medium],
    max_positions: int | None,
) -> Prompt:
    """Put the tokens of each picture in the place of its image token, and those of a video in its video token's."""
    found: dict[int, Sequence[Layout]] = {}
    for medium in media:
        there = np.flatnonzero(ids == medium.token_id).tolist()
        if len(there) != len(medium.given):
            raise PromptError(
                f"tokenizer makes {len(there)} {medium.name} tokens (id {medium.token_id}, {medium.token}) "
                f"of the text for {medium.count}"
            )
        found |= dict(zip(there, medium.given, strict=True))
    places = sorted(found)
    counts = [sum(len(layout.token_ids) for layout in found[place]) for place in places]
    length = len(ids) - len(places) + sum(counts)
    if length == 0:
        raise PromptError("the prompt has no tokens")
    if max_positions is not None and length > max_positions:
        each = f" ({' + '.join(map(str, counts))})" if len(counts) > 1 else ""
        raise PromptError(
            f"prompt has {length} tokens, {sum(counts)}{each} of them {_words(media)}; "
            f"the model has {max_positions} positions"
        )
    parts, featured, last = [ids[:0]], [np.zeros(0, bool)], -1
    begin = done = 0
    for place, count in zip(places, counts, strict=True):
        parts += [ids[begin:place], *(layout.token_ids for layout in found[place])]
        featured += [np.zeros(place - begin, bool), *(layout.has_features for layout in found[place])]
        done += place - begin + count
        begin, last = place + 1, done - 1
    parts.append(ids[begin:])
    positions = np.flatnonzero(np.concatenate(featured))
    pictures = tuple(layout for place in places for layout in found[place])
    return Prompt(text, np.concatenate(parts), positions, last, pictures)


def _words(media: Sequence[Medium]) -> str:
    """What of media there is: `picture`, `pictures and video`."""
    return " and ".join(medium.count.partition(" ")[2] for medium in media if medium.given) or "pictures"


def _chat(text: str, media: Sequence[Medium], template: str, special: dict[str, str]) -> str:
    """Render one user message, as a list of parts, or as a string for templates that accept only strings.

    The last form leaves the pictures' places to the template, which knows `image_token` as in transformers. A template
    has accepted a form if the rendering has as many image tokens as pictures and does not print the list itself. The
    first such rendering that contains the user's text is used, else the first at all.
    """
    seen = [{"type": medium.name} for medium in unplaced(text, media)]
    forms: tuple[Any, ...] = ([*seen, {"type": "text", "text": text}], plain(text, media), text)
    special = {f"{medium.name}_token": medium.token for medium in media} | special
    taken: list[str] = []
    failure = ""
    for form in forms:
        try:
            rendered = render(template, [{"role": "user", "content": form}], special)
        except PromptError as error:
            failure = failure or str(error)
            continue
        wrong = next((medium for medium in media if rendered.count(medium.token) != len(medium.given)), None)
        if wrong is not None:
            places = rendered.count(wrong.token)
            failure = failure or f"chat template makes {places} {wrong.token} of {wrong.count}"
        elif _LISTED not in rendered or _LISTED in text:
            if text.strip() in rendered:
                return rendered
            taken.append(rendered)
    if not taken:
        raise PromptError(failure)
    return taken[0]


def render(template: str, messages: list[dict[str, Any]], special: dict[str, str]) -> str:
    """Render a chat template in Jinja's sandbox, with the beginning of the model's answer at the end.

    `special` holds the texts of `bos_token` and similar tokens. Every failure is a `PromptError` of one line.
    """
    if len(template) > TEMPLATE:
        raise PromptError(f"chat template: it has {len(template)} characters, the limit is {TEMPLATE}")
    try:
        with counted():  # constant parts run while it is compiled
            return _compiled(template).render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **special
            )
    except Exception as error:  # a template can raise any exception
        raise PromptError(f"chat template: {reason(error)}") from error


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    """Make the environment that transformers provides for chat templates; `generation` tags have no effect."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = limited(ImmutableSandboxedEnvironment)(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    del environment.globals["lipsum"]
    environment.filters["tojson"] = tojson
    environment.limit_filters("tojson")  # type: ignore[attr-defined]
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment
