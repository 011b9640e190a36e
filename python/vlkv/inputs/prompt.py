"""Turns a user's text and pictures into token ids, with the same results as Hugging Face's `LlavaProcessor`.

Pictures replace the image tokens (`<image>`) in the text; without image tokens they precede the text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from vlkv.errors import PromptError
from vlkv.inputs.layouts import Layout
from vlkv.inputs.template_limits import counted, limited
from vlkv.inputs.tokenizer import Tokenizer
from vlkv.storage.files import reason
from vlkv.storage.image_facts import ImageFacts

if TYPE_CHECKING:
    import jinja2

_LISTED = "{'type': 'text'"


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prompt that is ready for the model.

    Fields:
        text: the tokenised text, with one image token for each picture.
        token_ids: int64 `[S]`; each picture is replaced by the tokens of its layout.
        image_positions: int64, the indices of the tokens that get features, over all pictures, ascending.
        last_image: the index of the last token of the last picture; -1 without a picture.
        pictures: the pictures' layouts.
    """

    text: str
    token_ids: NDArray[np.int64]
    image_positions: NDArray[np.int64]
    last_image: int
    pictures: tuple[Layout, ...] = ()


def build_prompt(
    text: str,
    pictures: Sequence[Layout],
    tokenizer: Tokenizer,
    image: ImageFacts,
    *,
    chat_template: str | None = None,
    raw: bool = False,
    max_positions: int | None = None,
) -> Prompt:
    """Render text and pictures with the checkpoint's chat template, tokenise, and insert the pictures' tokens.

    Args:
        text: the user's text; every `image.token` in it is the place of a picture.
        pictures: the layouts of its pictures.
        tokenizer: the checkpoint's tokenizer.
        image: the image facts, which name the image token.
        chat_template: the checkpoint's Jinja template, or None.
        raw: whether to use the text without the template.
        max_positions: the number of positions of the model.

    BOS is added as the tokenizer does, unless the text already begins with it. Raises `PromptError` if the text is
    empty or has lone surrogates, the numbers of pictures and places differ, the template fails, or there are more
    tokens than positions.
    """
    if not (text if raw else text.strip()):
        raise PromptError("the prompt is empty")
    image_count = len(pictures)
    places = text.count(image.token)
    if places and places != image_count:
        raise PromptError(
            f"prompt has {places} {image.token} for {image_count} given {_pictures(image_count)}"
        )
    if raw or chat_template is None:
        whole = plain(text, image_count, image.token)
    else:
        whole = _chat(text, image_count, image.token, chat_template, tokenizer.special_tokens)
    bos = tokenizer.special_tokens.get("bos_token")
    ids = tokenizer.encode(whole, add_special_tokens=bos is None or not whole.startswith(bos))
    return expand(whole, np.array(ids, np.int64), pictures, image, max_positions)


def _pictures(count: int) -> str:
    return "picture" if count == 1 else "pictures"


def plain(text: str, image_count: int, token: str) -> str:
    """The text with one image token per line before it, unless the text contains image tokens itself."""
    return text if token in text else f"{token}\n" * image_count + text


def expand(
    text: str,
    ids: NDArray[np.int64],
    pictures: Sequence[Layout],
    image: ImageFacts,
    max_positions: int | None,
) -> Prompt:
    """Replace each image token by the tokens of its picture."""
    places = np.flatnonzero(ids == image.token_id)
    if len(places) != len(pictures):
        raise PromptError(
            f"tokenizer makes {len(places)} image tokens (id {image.token_id}, {image.token}) "
            f"of the text for {len(pictures)} {_pictures(len(pictures))}"
        )
    counts = [len(layout.token_ids) for layout in pictures]
    length = len(ids) - len(places) + sum(counts)
    if length == 0:
        raise PromptError("the prompt has no tokens")
    if max_positions is not None and length > max_positions:
        each = f" ({' + '.join(map(str, counts))})" if len(counts) > 1 else ""
        raise PromptError(
            f"prompt has {length} tokens, {sum(counts)}{each} of them {_pictures(len(pictures))}; "
            f"the model has {max_positions} positions"
        )
    parts, featured, last = [ids[:0]], [np.zeros(0, bool)], -1
    begin = done = 0
    for place, layout in zip(places.tolist(), pictures, strict=True):
        parts += [ids[begin:place], layout.token_ids]
        featured += [np.zeros(place - begin, bool), layout.has_features]
        done += place - begin + len(layout.token_ids)
        begin, last = place + 1, done - 1
    parts.append(ids[begin:])
    positions = np.flatnonzero(np.concatenate(featured))
    return Prompt(text, np.concatenate(parts), positions, last, tuple(pictures))


def _chat(text: str, image_count: int, token: str, template: str, special: dict[str, str]) -> str:
    """Render one user message, as a list of parts, or as a string for templates that accept only strings.

    The last form leaves the pictures' places to the template, which knows `image_token` as in transformers. A template
    has accepted a form if the rendering has as many image tokens as pictures and does not print the list itself. The
    first such rendering that contains the user's text is used, else the first at all.
    """
    pictures = [] if token in text else [{"type": "image"}] * image_count
    forms: tuple[Any, ...] = (
        [*pictures, {"type": "text", "text": text}],
        plain(text, image_count, token),
        text,
    )
    special = {"image_token": token, **special}
    taken: list[str] = []
    failure = ""
    for form in forms:
        try:
            rendered = render(template, [{"role": "user", "content": form}], special)
        except PromptError as error:
            failure = failure or str(error)
            continue
        places = rendered.count(token)
        if places != image_count:
            failure = (
                failure or f"chat template makes {places} {token} of {image_count} {_pictures(image_count)}"
            )
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
    try:
        compiled = _compiled(template)
        with counted():
            return compiled.render(
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
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment
