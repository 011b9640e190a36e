"""The task `text` as a function: perplexity of and agreement on the tokens that follow texts, with 95% intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlkv.engine import Engine
from vlkv.errors import EvalError
from vlkv.eval.api import BUDGETS, POLICIES
from vlkv.eval.records import Answers
from vlkv.eval.runner import BATCH, Run
from vlkv.eval.settings import make_settings
from vlkv.eval.tasks import NEW_TOKENS
from vlkv.eval.text_report import TextLine, summarize_texts, text_json, write_text_report
from vlkv.eval.text_runner import evaluate_texts
from vlkv.eval.texts import make_texts


@dataclass(frozen=True)
class TextReport:
    """The results: one line for each kind of text and setting."""

    title: str
    lines: list[TextLine]

    def json(self) -> bytes:
        """Title and lines as one JSON object."""
        return text_json(self.title, self.lines)

    def write(self, folder: Path) -> list[Path]:
        """Writes the tables and the JSON. Returns their paths."""
        return write_text_report(folder, self.title, self.lines)


def run_texts(
    engine: Path | str | Callable[[], Engine],
    *,
    policies: Sequence[str] = POLICIES,
    budgets: Sequence[float] = BUDGETS,
    samples: int | None = None,
    seed: int = 0,
    max_new_tokens: int | None = None,
    output: Path | None = None,
    batch: int = BATCH,
    begin: Callable[[str, int], None] = lambda what, records: None,
    progress: Callable[[int], None] = lambda records: None,
) -> TextReport:
    """Evaluates texts of every kind under every policy and budget; the arguments are those of `vlkv.eval.run`.

    `samples` is the number of texts of each kind, `max_new_tokens` the number of tokens after each.

    Raises:
        EvalError: a number is out of range, or a text is too short for this model's tokenizer.
        PolicyError: a policy is unknown.
        EngineError: the directory is not an engine.
    """
    if batch < 1:
        raise EvalError(f"batch {batch} is under 1")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise EvalError(f"max-new-tokens {max_new_tokens} is under 1")
    given = max_new_tokens or NEW_TOKENS["text"]
    texts, settings = make_texts(samples, seed), make_settings(policies, budgets)
    opened = engine() if callable(engine) else Engine.load(engine)
    begin(f"text, {len(settings)} settings", len(texts) * len(settings))
    asked = Run(f"text seed {seed} given {given}", given, batch)
    with Answers(output) as known:
        records = evaluate_texts(opened, asked, texts, settings, known, progress)
    return TextReport(f"text: seed {seed}, {given} tokens after each", summarize_texts(records))
