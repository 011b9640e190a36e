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


@dataclass(frozen=True)
class Reply:
    """A model's answer: its text, the tokens of prompt and answer, and the seconds that it took."""

    text: str
    tokens_in: int
    tokens_out: int
    seconds: float


Ask = Callable[[str], Reply]
"""Asks a model: takes the prompt, returns its reply. Raises `TuneError` if there is none."""


def endpoint(url: str, model: str, max_tokens: int = MOST_TOKENS, seconds: float = SECONDS) -> Ask:
    """Returns a function that asks `model` at `url` (.../v1). The key is in the environment, in VLKV_TUNE_KEY."""
    if not url.startswith(("http://", "https://")):
        raise TuneError(f"--endpoint is {url!r}; it begins with http:// or https:// and usually ends in /v1")
    try:
        import openai
    except ImportError as error:
        raise TuneError(f"--endpoint needs the packages of vlkv[tune]: {error}") from None
    client = openai.OpenAI(base_url=url, api_key=os.environ.get(KEY, "x"), timeout=seconds, max_retries=2)

    def ask(prompt: str) -> Reply:
        begin = time.perf_counter()
        try:
            done = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": prompt}], max_tokens=max_tokens
            )
        except (openai.APIConnectionError, openai.AuthenticationError, openai.NotFoundError) as error:
            raise TuneError(f"{url}: {reason(error)}") from error
        except openai.APIError:  # such as a prompt that is too long: this call gives nothing, the next may
            return Reply("", 0, 0, time.perf_counter() - begin)
        usage = done.usage
        text = done.choices[0].message.content if done.choices else ""
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return Reply(text or "", *tokens, time.perf_counter() - begin)

    return ask
