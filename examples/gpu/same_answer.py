"""Compares the tokens of two answers of `vlkv run --json`. If they differ, says where and exits with 1."""

import json
import sys
from itertools import takewhile
from pathlib import Path


def main() -> int:
    """Returns the exit code."""
    wanted, got = (json.loads(Path(path).read_text()) for path in sys.argv[1:3])
    pairs = zip(wanted["token_ids"], got["token_ids"], strict=False)
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    total = len(wanted["token_ids"])
    print(f"{sys.argv[2]}: {same} of {total} tokens as on the CPU; {got['text']!r}")
    return 0 if same == total == len(got["token_ids"]) else 1


if __name__ == "__main__":
    sys.exit(main())
