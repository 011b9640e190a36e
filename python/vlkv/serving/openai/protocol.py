"""Requests of OpenAI's API as records, and its format of errors. Unsupported fields are refused by name.

A field of type None is not supported either, but some clients send it with null.

Source: OpenAI's API reference, Chat Completions and Completions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from vlkv.errors import VlkvError
from vlkv.generation.sampling import MAX_BIASES, MAX_STOPS

Text = Annotated[str, msgspec.Meta(max_length=1 << 22)]
MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
MAX_MESSAGES, MAX_PARTS = 1 << 14, 1 << 12
"""Messages of a request, and parts of a message; each costs time before the tokens can be counted."""

MAX_VALUES = 1 << 18
"""Values of a body's JSON, counted by commas and brackets, in texts too: a million objects hold up everyone."""


class RequestError(VlkvError):
    """A request that can't be served, in OpenAI's terms.

    Attributes:
        status: the HTTP status.
        kind: `invalid_request_error`, `authentication_error`, `server_error`, or a limit, `requests` or `tokens`.
        param: the invalid field, or None.
        code: a short name of the reason, or None.
        wait: seconds after which the client may try again, or None.
    """

    def __init__(
        self,
        text: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        wait: int | None = None,
    ) -> None:
        super().__init__(text)
        self.wait = wait
        self.status, self.kind, self.param, self.code = status, kind, param, code

    def body(self) -> dict[str, Any]:
        """The error's JSON, as OpenAI's clients expect it."""
        text = " ".join(str(self).split())
        return {"error": {"message": text, "type": self.kind, "param": self.param, "code": self.code}}


class _Record(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A part of a request whose unknown fields are errors."""


class ImageUrl(_Record):
    """A picture: a data URI, or a URL of a host that the server allows. `detail` has no effect."""

    url: str
    detail: str = "auto"


class TextPart(_Record, tag="text"):
    """Text of a message."""

    text: Text


class ImagePart(_Record, tag="image_url"):
    """A picture of a message."""

    image_url: ImageUrl


class VideoPart(_Record, tag="video"):
    """A video of a message: the URLs of its frames, as those of pictures. OpenAI's API has no such part."""

    video: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_PARTS)]


Part = TextPart | ImagePart | VideoPart


class ChatMessage(_Record):
    """One turn of a chat. `content` is a text, or parts in their order.

    The last fields stand empty in an answer that a client sends back as it got it.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], msgspec.Meta(max_length=MAX_PARTS)]
    name: str | None = None
    annotations: Annotated[list[Any], msgspec.Meta(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    refusal: None = None
    tool_calls: None = None


class JsonSchema(_Record):
    """A named JSON schema."""

    name: str = "answer"
    schema: dict[str, Any] = {}
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(_Record):
    """The required format of an answer: text, any JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(_Record):
    """`include_usage` adds a last chunk with the usage."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Common(msgspec.Struct, kw_only=True):
    """Fields of both kinds of requests. `policy`, `budget`, `prune`, `recall`, `top_k`, `kept` are extensions of vlkv.

    So are `repetition_penalty` and the fields after it up to `bad_words_ids`, with the names and meanings of
    transformers, and `priority` (-10 to 10, higher first), which goes before `service_tier`. `kept` requests maps of
    the pictures' kept patches. `user`, `metadata`, `store` and similar fields have no effect.
    """

    model: str = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=MAX_STOPS)] | None = None
    n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], msgspec.Meta(max_length=MAX_BIASES)] | None = None
    user: str | None = None
    policy: str | None = None
    budget: float | None = None
    prune: str | None = None
    recall: float | None = None
    kept: bool | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    min_new_tokens: int | None = None
    suppress_tokens: list[int] | None = None
    bad_words_ids: list[list[int]] | None = None
    priority: int | None = None


class ChatRequest(Common, forbid_unknown_fields=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], msgspec.Meta(max_length=MAX_MESSAGES)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    modalities: list[Literal["text"]] | None = None
    audio: None = None
    function_call: None = None
    functions: None = None
    parallel_tool_calls: None = None
    prediction: None = None
    reasoning_effort: None = None
    tool_choice: None = None
    tools: None = None
    verbosity: None = None
    web_search_options: None = None


class CompletionRequest(Common, forbid_unknown_fields=True, kw_only=True):
    """`POST /v1/completions`: text without the chat template."""

    prompt: str | list[str]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: None = None
    suffix: None = None


Asked = TypeVar("Asked", bound=Common)


def decode(data: bytes | bytearray, kind: type[Asked]) -> Asked:
    """Parses a request's body. Raises `RequestError`, which names the field, for an invalid one."""
    values = sum(map(data.count, (b",", b"[", b"{")))
    if values > MAX_VALUES:
        raise RequestError(
            f"the body has {values} commas and brackets, the limit is {MAX_VALUES}", status=413
        )
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        where = text.rsplit("`", 2)[1].removeprefix("$.")[:200] if " - at `$" in text else None
        unknown = text.split("`")[1][:100] if "unknown field" in text else None
        name = where if text.startswith("Expected `null`") else unknown
        if name is not None:
            text = f"parameter {name!r} is not supported"
            raise RequestError(text, param=name, code="unsupported_parameter") from None
        raise RequestError(text, param=where) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RequestError(f"the body is not valid JSON: {error}") from None
