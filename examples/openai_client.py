"""Asks a running `vlkv serve` about a picture with the `openai` package's client, and streams the answer.

vlkv serve ENGINE & python examples/openai_client.py form.png "What is the total?"
"""

from __future__ import annotations

import argparse
import base64
import mimetypes
import sys
from pathlib import Path

from openai import OpenAI, OpenAIError


def main() -> int:
    """Returns 2 if the server refuses the request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="llava")
    parser.add_argument("--policy")
    parser.add_argument("--budget", type=float)
    given = parser.parse_args()
    kind = mimetypes.guess_type(given.image)[0] or "image/png"
    picture = f"data:{kind};base64,{base64.b64encode(given.image.read_bytes()).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "text", "text": given.prompt},
    ]
    own = {name: value for name in ("policy", "budget") if (value := getattr(given, name)) is not None}
    client = OpenAI(base_url=given.url, api_key="x")
    try:
        stream = client.chat.completions.create(
            model=given.model,
            messages=[{"role": "user", "content": content}],
            stream=True,
            stream_options={"include_usage": True},
            extra_body=own,
        )
        for chunk in stream:
            for choice in chunk.choices:
                print(choice.delta.content or "", end="", flush=True)
            if chunk.usage:
                print(
                    f"\n{chunk.usage.prompt_tokens} prompt tokens, {chunk.usage.completion_tokens} in the answer"
                )
    except OpenAIError as error:
        print(f"{given.url}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
