"""Draws the shipped example: a held-out form as PNG, and its question and answer as JSON.

$ python -m examples.tiny_vlm.make_example --number 900000 --output examples/tiny_vlm
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from vlkv.eval.forms import draw, held_out_form, one_question


def main(arguments: list[str] | None = None) -> int:
    """Writes `example.png` and `example.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=900_000, help="number of the held-out form")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder to write to")
    options = parser.parse_args(arguments)
    form = held_out_form(options.number)
    prompt, answer = one_question(form)
    draw(form).save(options.output / "example.png", optimize=True)
    facts = {"image": "example.png", "prompt": prompt, "answer": answer, "seed": form.seed}
    text = json.dumps(facts, indent=2) + "\n"
    (options.output / "example.json").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
