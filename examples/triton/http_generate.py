"""An HTTP client of the standard library: it calls `generate`, or with --stream `generate_stream`.

python http_generate.py "What is the total?" --image a.png --stream
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path


def main() -> int:
    """Asks and prints the answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--image", type=Path, action="append", default=[])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="vlkv")
    parser.add_argument("--budget", type=float, default=0.1)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--stream", action="store_true")
    arguments = parser.parse_args()
    body = {
        "prompt": arguments.prompt,
        "images": [base64.b64encode(path.read_bytes()).decode() for path in arguments.image],
        "budget": arguments.budget,
        "max_tokens": arguments.max_tokens,
        "stream": arguments.stream,
    }
    if not body["images"]:
        del body["images"]
    kind = "generate_stream" if arguments.stream else "generate"
    request = urllib.request.Request(
        f"{arguments.url}/v2/models/{arguments.model}/{kind}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request) as reply:
            for line in reply:
                text = line.removeprefix(b"data:").strip()
                if text:
                    print(json.loads(text)["text"], end="", flush=True)
    except urllib.error.HTTPError as error:
        print(error.read().decode(), file=sys.stderr)
        return 1
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
