"""The evaluation as a function: samples of a task under policies and budgets, with 95% intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlkv.engine import Engine
from vlkv.errors import EvalError
from vlkv.eval.ablation import ablation_settings
from vlkv.eval.records import Answers
from vlkv.eval.report import as_json, write_report
from vlkv.eval.runner import BATCH, Run, evaluate, run_name
from vlkv.eval.settings import make_settings
from vlkv.eval.summary import Line, summarize
from vlkv.eval.tasks import NEW_TOKENS, engine_forms, make_samples
from vlkv.policies.builtin import DEFAULT_POLICY
from vlkv.policies.policy import Policy
from vlkv.pruning.methods import resolve_prune

BUDGETS = (0.5, 0.2, 0.1, 0.05)
POLICIES = ("full", DEFAULT_POLICY)


@dataclass(frozen=True)
class Report:
    """The results of an evaluation.

    Fields:
        title: task, number of samples, seed.
        lines: one for each setting (a policy at a budget).
        ablation: whether the settings are the parts of vl-cache.
    """

    title: str
    lines: list[Line]
    ablation: bool = False

    def json(self) -> bytes:
        """Title and lines as one JSON object."""
        return as_json(self.title, self.lines)

    def write(self, folder: Path) -> list[Path]:
        """Writes the table, the JSON and, if matplotlib is installed, the chart. Returns their paths."""
        return write_report(folder, self.title, self.lines, self.ablation)


def run(
    engine: Path | str | Callable[[], Engine],
    task: str = "form-qa",
    *,
    policies: Sequence[str | Policy] = POLICIES,
    budgets: Sequence[float] = BUDGETS,
    samples: int | None = None,
    seed: int = 0,
    turns: int = 1,
    data: Path | None = None,
    question: str | None = None,
    max_new_tokens: int | None = None,
    ablation: bool = False,
    prune: str | None = None,
    recall: float | None = None,
    output: Path | None = None,
    batch: int = BATCH,
    begin: Callable[[str, int], None] = lambda what, records: None,
    progress: Callable[[int], None] = lambda records: None,
) -> Report:
    """Asks every sample of a task under every policy and budget.

    Args:
        engine: an engine directory, or a function that opens one; it is called once the arguments are checked.
        task: `form-qa`, `form-list`, `two-forms`, `second-question`, or `folder` with `data`.
        policies: policies or their names; not used with `ablation`.
        budgets: shares of the cache, in (0, 1].
        samples: the number of samples; None for 500, or for all of a folder.
        seed: the seed of the forms.
        turns: questions about one picture, 1 or 2.
        data: a JSONL file or its folder, for the task `folder`.
        question: the question of the form tasks; `{key}` is the place of the key.
        max_new_tokens: the most tokens of an answer; None for the task's own limit.
        ablation: compare the parts of vl-cache instead of policies, and measure cache hit rates.
        prune: the image tokens that every setting, `full` too, leaves out before prefill, such as `duplicates`.
        recall: the share of the prompt that each token reads of the evicted tokens, under every policy that evicts;
            None drops these.
        output: a folder to which answers are appended; a run with the same arguments resumes there. The caller writes
            the report with `Report.write`.
        batch: the most settings that decode together; memory grows with it.
        begin: called with a description and the number of records to come, before the first question.
        progress: called with the number of new records after each sample.

    Raises:
        EvalError: the task is unknown, a number is out of range, or samples can't be read.
        PolicyError: a policy or a pruning method is unknown.
        EngineError: the directory is not an engine.
    """
    if batch < 1:
        raise EvalError(f"batch {batch} is under 1")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise EvalError(f"max-new-tokens {max_new_tokens} is under 1")
    turns = len(
        make_samples(task, samples, seed, turns, data, question)[0].turns
    )  # arguments are checked first
    if ablation and turns > 1:
        raise EvalError("--ablation needs a task with one question per sample")
    if ablation and prune is not None:
        raise EvalError("--ablation compares caches of whole prompts; leave out --prune")
    if ablation and recall is not None:
        raise EvalError("--ablation compares caches that drop what they evict; leave out --recall")
    resolve_prune(prune)
    settings = ablation_settings(budgets) if ablation else make_settings(policies, budgets, turns, recall)
    new_tokens = max_new_tokens or NEW_TOKENS[task]
    name = run_name(task, seed, turns, new_tokens, data, question, prune)
    asked = Run(name, new_tokens, batch, hits=ablation, prune=prune)
    opened = engine() if callable(engine) else Engine.load(engine)
    chosen = make_samples(task, samples, seed, turns, data, question, engine_forms(opened.directory))
    begin(f"{task}, {len(settings)} settings", len(chosen) * len(settings))
    with Answers(output) as known:
        lines = summarize(evaluate(opened, asked, chosen, settings, known, progress))
    questions = "" if turns == 1 else f", {turns} questions each"
    pruned = "" if prune is None else f", pruned by {prune}"
    return Report(f"{task}: {len(chosen)} samples{questions}, seed {seed}{pruned}", lines, ablation)
