"""One call of a language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from vlkv.errors import TuneError
from vlkv.storage.files import reason

KEY = "VLKV_TUNE_KEY"
SECONDS = 600.0
MOST_TOKENS = 4096
TEMPERATURE = 0.8


@dataclass(frozen=True)
class Reply:
    """A model's answer: its text, the tokens of prompt and answer, and the seconds that it took.

    `more` holds the further samples of the same call; `tokens_out` counts theirs too.
    """

    text: str
    tokens_in: int
    tokens_out: int
    seconds: float
    more: tuple[str, ...] = ()


Ask = Callable[[str, str], Reply]
"""Asks a model: takes the prompt and the agent's name, returns the reply. Raises `TuneError` if there is none."""


def endpoint(
    url: str, model: str, max_tokens: int = MOST_TOKENS, seconds: float = SECONDS, samples: int = 1
) -> Ask:
    """Returns a function that asks `model` at `url` (.../v1) for `samples` answers to a prompt.

    Several answers are drawn at TEMPERATURE; one is drawn as the server does by itself. The key is in the environment,
    in VLKV_TUNE_KEY.
    """
    if not url.startswith(("http://", "https://")):
        raise TuneError(f"--endpoint is {url!r}; it begins with http:// or https:// and usually ends in /v1")
    try:
        import openai
    except ImportError as error:
        raise TuneError(f"--endpoint needs the packages of vlkv[tune]: {error}") from None
    client = openai.OpenAI(base_url=url, api_key=os.environ.get(KEY, "x"), timeout=seconds, max_retries=2)

    def ask(prompt: str, _agent: str) -> Reply:
        begin = time.perf_counter()
        try:
            done = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=max_tokens,
                n=samples,
                temperature=TEMPERATURE if samples > 1 else openai.omit,
            )
        except (openai.APIConnectionError, openai.AuthenticationError, openai.NotFoundError) as error:
            raise TuneError(f"{url}: {reason(error)}") from error
        except openai.APIError:  # such as a prompt that is too long: this call gives nothing, the next may
            return Reply("", 0, 0, time.perf_counter() - begin)
        usage = done.usage
        text, *more = [choice.message.content or "" for choice in done.choices] or [""]
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return Reply(text, *tokens, time.perf_counter() - begin, tuple(more))

    return ask
