"""Runs every text under every setting, and compares the predictions of the following tokens with the full cache's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from vlkv.dtypes import Float32, Float64
from vlkv.engine import Engine
from vlkv.errors import EvalError
from vlkv.eval.records import Answers, Record
from vlkv.eval.runner import Asked, Run, blank_record, engine_digest, resumed
from vlkv.eval.settings import FULL, Setting
from vlkv.eval.texts import Text
from vlkv.generation.question import Question
from vlkv.generation.result import Result


def evaluate_texts(
    engine: Engine,
    run: Run,
    texts: Sequence[Text],
    settings: Sequence[Setting],
    answers: Answers,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Record]:
    """Returns the records of all settings and texts, including those that `answers` already had.

    `advance` is called with the number of new records after each text. A text that is too short is an `EvalError`.
    """
    digest = engine_digest(engine.directory)

    def blank(text: Text, setting: Setting) -> Record:
        return blank_record(run, digest, setting, text.number, [text.asked or ""], [], text.kind)

    def ask(text: Text, missing: Sequence[Asked]) -> list[Record]:
        return _run(engine, run, text, missing)

    return resumed(texts, settings, answers, blank, ask, advance=advance)


def _question(engine: Engine, run: Run, text: Text) -> tuple[Question, list[int]]:
    """The prompt, and the text's own tokens that follow it; none if the model's answer is used instead."""
    ids: list[int] = []
    if text.tokens:
        ids = engine.prompt(Question(text.body, raw=True)).token_ids.tolist()
        wanted = text.tokens + (run.new_tokens if text.asked is None else 0)
        if len(ids) < wanted:
            raise EvalError(
                f"text {text.number} ({text.kind}) has {len(ids)} tokens of this model, "
                f"{wanted} are needed; use fewer --max-new-tokens"
            )
    head = engine.decode(ids[: text.tokens])
    if text.asked is None:
        return Question(head, raw=True), ids[text.tokens : wanted]
    asked = f"{head}\n\n{text.asked}" if head else text.asked
    return Question(asked, max_new_tokens=run.new_tokens), []


def _run(engine: Engine, run: Run, text: Text, asked: Sequence[Asked]) -> list[Record]:
    """Prefills the text once per observation window; its settings run together, beside the full cache."""
    question, tokens = _question(engine, run, text)
    shared = engine.read(question)
    tokens = tokens or list(shared.answer([FULL.variant])[0].token_ids)
    device = engine.manifest.device
    batch = run.batch if device is None else min(run.batch, device.batch - 1)
    records = []
    for first in range(0, len(asked), batch):
        group = asked[first : first + batch]
        variants = [FULL.variant, *(setting.variant for setting, _ in group)]
        results: list[Result] = []
        steps = shared.forced(variants, tokens[:-1], results)
        sums = np.zeros((3, len(group)))
        for token, logits in zip(tokens, steps, strict=True):
            sums += compared(logits, token)
        for (_, blank), result, (loss, agreed, divergence) in zip(group, results[1:], sums.T, strict=True):
            fields = {name: getattr(blank, name) for name in blank.__struct_fields__} | {
                "answers": [engine.decode(tokens)],
                "loss": float(loss),
                "agreed": int(agreed),
                "divergence": float(divergence),
                "tokens": len(tokens),
                "kept": result.kept_tokens,
                "prompt_tokens": result.prompt_tokens,
            }
            records.append(Record(**fields))
    return records


def compared(logits: Float32, token: int) -> Float64:
    """Compares N settings on one token: figures `[3, N]` from logits `[1 + N, V]`, whose first row is the full cache's.

    The figures are -ln p of the token; 1 if the first choice equals the full cache's; KL(full cache || setting) in
    nats.
    """
    rows = log_softmax(logits)
    full, own = rows[0], rows[1:]
    loss = -own[:, token]
    agreed = (own.argmax(axis=1) == full.argmax()).astype(np.float64)
    divergence = (np.exp(full) * (full - own)).sum(axis=1)
    return np.stack([loss, agreed, np.maximum(divergence, 0.0)])


def log_softmax(logits: Float32) -> NDArray[np.float64]:
    """The logarithms of each row's probabilities `[N, V]`."""
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows
