"""Asks an engine about held-out forms, from PNG file to text as `vlkv run` does, with the full cache and with less.

$ python -m examples.tiny_vlm.measure out/tiny_vlm/engine --first 10000 --forms 500
"""

from __future__ import annotations

import argparse
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
from rich.progress import track

from vlkv import Engine, Policy
from vlkv.eval.forms import Form, draw, held_out_form, one_question

NEW_TOKENS = 8


def png(form: Form) -> bytes:
    """Returns the form's picture as a PNG file."""
    file = BytesIO()
    draw(form).save(file, format="PNG")
    return file.getvalue()


def exact(engine: Engine, form: Form, policy: str | Policy, budget: float) -> tuple[bool, list[int]]:
    """Returns whether the form's question is answered exactly, and what each layer kept."""
    question, answer = one_question(form)
    result = engine.generate(question, [png(form)], policy=policy, budget=budget, max_new_tokens=NEW_TOKENS)
    return result.text == answer, result.kept_tokens


def main(arguments: list[str] | None = None) -> int:
    """Prints the share of exact answers with the full cache and with each budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", type=Path)
    parser.add_argument("--first", type=int, default=0, help="number of the first held-out form")
    parser.add_argument("--forms", type=int, default=500, help="how many held-out forms")
    parser.add_argument("--budget", type=float, nargs="*", default=[0.1], help="shares of the cache to keep")
    options = parser.parse_args(arguments)
    engine = Engine.load(options.engine)
    forms = [held_out_form(options.first + number) for number in range(options.forms)]
    for policy, budget in [("full", 1.0), *(("vl-cache", budget) for budget in options.budget)]:
        asked = track(forms, f"{policy} {budget:g}", transient=True)
        right, kept = zip(*(exact(engine, form, policy, budget) for form in asked), strict=True)
        layers = " ".join(f"{count:.0f}" for count in np.mean(kept, axis=0))
        print(f"{policy} {budget:g}: {np.mean(right):.1%} exact of {len(forms)}, kept per layer {layers}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
