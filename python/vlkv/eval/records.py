"""Answers on disk, one JSON line each, appended immediately, so that an interrupted run can resume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import msgspec

from vlkv.errors import EvalError
from vlkv.storage.files import reason, show

NAME = "answers.jsonl"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one setting on one sample.

    Fields:
        run: task, data, seed, turns, and everything else that determines the questions.
        engine: digest of the engine's manifest.
        policy, digest, budget, keep: the setting; `digest` is that of the policy's fields.
        sample: the sample's number.
        questions, expected, answers: one per turn.
        exact, similarity: metrics of the last turn.
        loss, agreed, tokens: of the full cache's answer under teacher forcing: the sum of -ln p, the number of tokens
            that are also this setting's first choice, and the number of all; 0 tokens if it was not measured.
        kept: tokens kept per layer.
        prompt_tokens: prompt tokens of the last turn.
        kind, divergence: for a text, its kind, and the sum over its tokens of KL(full cache || this setting), in nats;
            `agreed` then counts first choices equal to the full cache's, and `loss` is that of the text's own tokens.
        read: bytes of keys, values and bounds that a decoded token reads of the prompt, as a share of the full cache's;
            None if nothing was recalled.
        hit, mass: the share of the most attended tokens that was kept, and the share of the attention that kept tokens
            receive (`vlkv.eval.hits`); None if it was not measured.
    """

    run: str
    engine: str
    policy: str
    digest: str
    budget: float
    keep: str
    sample: int
    questions: list[str]
    expected: list[str]
    answers: list[str]
    exact: bool
    similarity: float
    loss: float = 0.0
    agreed: int = 0
    tokens: int = 0
    kept: list[int] = []
    prompt_tokens: int = 0
    hit: float | None = None
    mass: float | None = None
    read: float | None = None
    kind: str = ""
    divergence: float = 0.0

    @property
    def key(self) -> tuple[object, ...]:
        """The fields that identify the record."""
        return (self.run, self.engine, self.digest, self.policy, self.budget, self.keep, self.sample)


class Answers:
    """The records of a folder, or in memory only if there is no folder. Use it as a context manager.

    An incomplete last line, left by an interruption, is removed. Another malformed line is an `EvalError` with its
    number.
    """

    def __init__(self, folder: Path | None) -> None:
        self._known: dict[tuple[object, ...], Record] = {}
        self._path = folder / NAME if folder is not None else None
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Answers:
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("a+b")
                self._load(self._file)
            except BaseException as error:
                if self._file is not None:
                    self._file.close()
                if not isinstance(error, OSError):
                    raise
                raise EvalError(f"{show(self._path)}: {reason(error)}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: tuple[object, ...]) -> Record | None:
        """The record of that key."""
        return self._known.get(key)

    def add(self, records: Sequence[Record]) -> None:
        """Appends records; they are on disk when this returns."""
        for record in records:
            self._known[record.key] = record
        if self._file is not None and records:
            try:
                self._file.write(b"".join(msgspec.json.encode(record) + b"\n" for record in records))
                self._file.flush()
            except OSError as error:
                raise EvalError(f"{show(self._path)}: {reason(error)}") from error

    def _load(self, file: IO[bytes]) -> None:
        file.seek(0)
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)
        for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
            try:
                record = msgspec.json.decode(line, type=Record)
            except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
                raise EvalError(f"{show(self._path)} line {number}: {reason(error)}") from error
            self._known[record.key] = record
