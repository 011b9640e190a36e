"""Asks every sample under every setting, and records the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from vlkv.engine import Engine
from vlkv.eval.folder import data_file
from vlkv.eval.hits import hit_rate
from vlkv.eval.metrics import exact, similarity
from vlkv.eval.records import Answers, Record
from vlkv.eval.settings import FULL, Setting
from vlkv.eval.tasks import Sample
from vlkv.generation.chat import Keep
from vlkv.generation.forced import token_loss
from vlkv.generation.fork import SharedPrompt, positions_or_all
from vlkv.generation.question import Question
from vlkv.generation.result import Result
from vlkv.storage.files import hash_file
from vlkv.storage.manifest import NAME as MANIFEST
from vlkv.storage.manifest import token_bytes

BATCH = 32
Item = TypeVar("Item")
Asked = tuple[Setting, Record]
"""A setting that has to be asked, and its record without results."""


@dataclass(frozen=True)
class Run:
    """The description of a run.

    Fields:
        name: task, data, seed and turns as a text; records with another name belong to another run.
        new_tokens: the most tokens of an answer.
        batch: the most settings that decode together, within the engine's limit; memory grows with it.
        hits: whether cache hit rates are measured.
        prune: the method that prunes each prompt; None for none.
    """

    name: str
    new_tokens: int
    batch: int = BATCH
    hits: bool = False
    prune: str | None = None


def run_name(
    task: str,
    seed: int,
    turns: int,
    new_tokens: int,
    data: Path | None = None,
    words: str | None = None,
    prune: str | None = None,
) -> str:
    """The name of a `Run`; a folder's name depends on its lines, not on its path."""
    where = f" {hash_file(data_file(data))[:16]}" if data is not None else ""
    asked = f" asked {words!r}" if words is not None else ""
    pruned = f" prune {prune}" if prune is not None else ""
    return f"{task}{where} seed {seed} turns {turns} new {new_tokens}{asked}{pruned}"


def engine_digest(directory: Path) -> str:
    """The digest of the manifest, which holds every file's hash."""
    return hash_file(directory / MANIFEST)[:16]


def evaluate(
    engine: Engine,
    run: Run,
    samples: Sequence[Sample],
    settings: Sequence[Setting],
    answers: Answers,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Record]:
    """Returns the records of all settings and samples, including those that `answers` already had.

    `advance` is called with the number of new records after each sample.
    """
    digest = engine_digest(engine.directory)

    def blank(sample: Sample, setting: Setting) -> Record:
        questions = [turn.question for turn in sample.turns]
        expected = [turn.answer for turn in sample.turns]
        return blank_record(run, digest, setting, sample.number, questions, expected)

    def ask(sample: Sample, missing: Sequence[Asked]) -> list[Record]:
        return (_ask_once if len(sample.turns) == 1 else _ask_turns)(engine, run, sample, missing)

    def usable(record: Record) -> bool:
        return not run.hits or record.hit is not None

    return resumed(samples, settings, answers, blank, ask, usable, advance)


def resumed(
    items: Sequence[Item],
    settings: Sequence[Setting],
    answers: Answers,
    blank: Callable[[Item, Setting], Record],
    ask: Callable[[Item, Sequence[Asked]], list[Record]],
    usable: Callable[[Record], bool] = lambda record: True,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Record]:
    """Returns one record per item and setting: the usable ones that `answers` has, and new ones, which it then keeps.

    Args:
        items: samples or texts.
        settings: the settings of each item.
        answers: the records of an earlier run.
        blank: makes the record of an item and setting without results; its key identifies it.
        ask: fills the blank records of one item's missing settings.
        usable: whether an earlier record has all figures that this run needs.
        advance: called with the number of records after each item.
    """
    found: list[Record] = []
    for item in items:
        asked = [(setting, blank(item, setting)) for setting in settings]
        known = ((setting, answers.get(empty.key)) for setting, empty in asked)
        records = {setting: record for setting, record in known if record is not None and usable(record)}
        missing = [(setting, empty) for setting, empty in asked if setting not in records]
        if missing:
            new = ask(item, missing)
            answers.add(new)
            records.update(zip((setting for setting, _ in missing), new, strict=True))
        found += [records[setting] for setting in settings]
        advance(len(settings))
    return found


def blank_record(
    run: Run,
    digest: str,
    setting: Setting,
    number: int,
    questions: list[str],
    expected: list[str],
    kind: str = "",
) -> Record:
    """The record of a sample or text under a setting before it is asked; `digest` is the engine's."""
    return Record(
        run=run.name,
        engine=digest,
        policy=setting.policy.name,
        digest=setting.digest,
        budget=setting.budget,
        keep=setting.keep,
        sample=number,
        questions=questions,
        expected=expected,
        answers=[],
        exact=False,
        similarity=0.0,
        kind=kind,
    )


def _filled(blank: Record, texts: list[str], result: Result) -> Record:
    wanted = blank.expected[-1]
    return _with(
        blank,
        answers=texts,
        exact=exact(texts[-1], wanted),
        similarity=similarity(texts[-1], wanted),
        kept=result.kept_tokens,
        prompt_tokens=result.prompt_tokens,
    )


def _with(record: Record, **fields: object) -> Record:
    values = {name: getattr(record, name) for name in record.__struct_fields__}
    return Record(**(values | fields))


def _ask_once(engine: Engine, run: Run, sample: Sample, asked: Sequence[Asked]) -> list[Record]:
    """Prefills the prompt once per observation window; its settings decode together."""
    question = Question(
        sample.turns[0].question, sample.pictures(), max_new_tokens=run.new_tokens, prune=run.prune
    )
    reading = engine.read(question)
    full = reading.answer([FULL.variant])[0]
    attention = _attention(engine, question, full) if run.hits else []
    records = []
    device = engine.manifest.device
    batch = run.batch if device is None else min(run.batch, device.batch)
    for first in range(0, len(asked), batch):
        group = asked[first : first + batch]
        settings = [setting for setting, _ in group]
        results = reading.answer([setting.variant for setting in settings])
        forced = _forced(reading, settings, full.token_ids)
        for (setting, blank), result, values in zip(group, results, forced, strict=True):
            record = _filled(blank, [result.text], result)
            record = _with(record, read=_read(engine, result))
            loss, agreed = values
            record = _with(record, loss=loss, agreed=agreed, tokens=len(full.token_ids))
            if attention:
                heads = engine.manifest.text.kv_heads
                kept = positions_or_all(result, heads)
                hit, mass = hit_rate(attention, kept, result.prompt_tokens, setting.budget)
                record = _with(record, hit=hit, mass=mass)
            records.append(record)
    return records


def _read(engine: Engine, result: Result) -> float | None:
    """The bytes that a decoded token read of the prompt, as a share of the full cache's; see `Record.read`."""
    steps = len(result.token_ids) - 1
    if not result.recall_bytes or not steps:
        return None
    text = engine.manifest.text
    token = token_bytes(text, engine.manifest.cache_dtype)
    read = sum(result.kept_tokens) * token + result.recall_bytes_read / steps
    return read / (text.layers * result.prompt_tokens * token)


def _forced(
    reading: SharedPrompt, settings: Sequence[Setting], tokens: Sequence[int]
) -> list[tuple[float, int]]:
    """For each setting, the sum of -ln p of the given tokens, and the number of them that are its first choice."""
    loss, agreed = np.zeros(len(settings)), np.zeros(len(settings), np.int64)
    steps = reading.forced([setting.variant for setting in settings], tokens[:-1])
    for token, logits in zip(tokens, steps, strict=True):
        loss += token_loss(logits, token)
        agreed += logits.argmax(axis=1) == token
    return list(zip(loss.tolist(), agreed.tolist(), strict=True))


def _attention(engine: Engine, question: Question, full: Result) -> list[list[np.ndarray]]:
    """The attention of each token of the full cache's answer."""
    steps = engine.forced(replace(question, policy="full"), full.token_ids[:-1], attention=True)
    return [step.attention for step in steps if step.attention is not None]


def _ask_turns(engine: Engine, run: Run, sample: Sample, asked: Sequence[Asked]) -> list[Record]:
    """Runs a conversation for each setting; the last answer counts."""
    pictures = sample.pictures()
    records = []
    for setting, blank in asked:
        keep: Keep = "reusable" if setting.keep == "reusable" else "compressed"
        chat = engine.chat(setting.policy, setting.budget, keep)
        texts = []
        for number, turn in enumerate(sample.turns):
            asked_now = () if number else pictures
            result = chat.ask(turn.question, asked_now, max_new_tokens=run.new_tokens, prune=run.prune)
            texts.append(result.text)
        records.append(_filled(blank, texts, result))
    return records
