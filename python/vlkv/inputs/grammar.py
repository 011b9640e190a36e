"""Constrained decoding: answers that follow a JSON schema, with the library `llguidance`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkv.errors import EngineError, SamplingError
from vlkv.storage.files import reason

MAX_SCHEMA = 1 << 18
"""The longest schema, in characters of its JSON."""
MAX_MEMBERS, MAX_VALUES = 1000, 10_000
"""The most members of one object, or objects of one array, and the most other values: more take seconds to compile, and
each token of the answer takes as long as hundreds of usual ones, for all answers that run."""
COMPACT = {"whitespace_flexible": True, "whitespace_pattern": r"[ \n]?"}
"""At most one blank or line break in a row: otherwise a small model may write blanks until the answer's limit."""


class Matcher:
    """The state of one answer in its grammar.

    Attributes:
        ended: whether only an end token may follow.
    """

    def __init__(self, matcher: Any, vocab: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((1, (vocab + 31) // 32), np.int32)
        self.ended = False

    def restrict(self, logits: NDArray[np.float32]) -> None:
        """Sets the logits `[V]` of tokens that can't come next to minus infinity, in place."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: len(logits)]
        logits[allowed == 0] = -np.inf

    def take(self, token: int) -> None:
        """Advances past an allowed token."""
        self._matcher.consume_token(token)
        self.ended = bool(self._matcher.is_stopped())


class Grammars:
    """Makes matchers for one tokenizer, which is read on first use.

    Args:
        directory: the folder of `tokenizer.json`.
        vocab: the size of the logits, V; ids beyond the tokenizer's are never allowed.
        eos: the ids that end an answer.
    """

    def __init__(self, directory: Path, vocab: int, eos: Sequence[int]) -> None:
        self._directory, self._vocab, self._eos = directory, vocab, list(eos)
        self._lock, self._tokenizer = Lock(), None

    def json(self, schema: str) -> Matcher:
        """A matcher for the JSON texts of a schema, which is given as JSON; `{}` allows any JSON.

        Raises:
            SamplingError: the schema is invalid, too long, or not supported, or `llguidance` can't read the tokenizer.
            EngineError: `llguidance` is not installed.
        """
        if len(schema) > MAX_SCHEMA:
            raise SamplingError(f"the JSON schema has {len(schema)} characters, the limit is {MAX_SCHEMA}")
        try:
            parsed = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise SamplingError(f"the JSON schema is not JSON: {reason(error)}") from None
        _check_widths(parsed)
        library = _library()
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._read(library)
        try:
            grammar = library.LLMatcher.grammar_from_json_schema(schema, overrides=COMPACT)
            matcher = library.LLMatcher(self._tokenizer, grammar)
        except ValueError as error:
            raise SamplingError(f"the JSON schema can't be followed: {reason(error)}") from None
        if matcher.is_error():
            raise SamplingError(f"the JSON schema can't be followed: {matcher.get_error()!s:.200}")
        return Matcher(matcher, self._vocab)

    def _read(self, library: Any) -> Any:
        path = self._directory / "tokenizer.json"
        try:
            return library.LLTokenizer(str(path), n_vocab=self._vocab, eos_token=self._eos or None)
        except (ValueError, OSError) as error:
            raise SamplingError(
                f"answers of this engine can't follow a schema: llguidance does not read its tokenizer: {reason(error)}"
            ) from None


def _check_widths(schema: Any) -> None:
    """Raises `SamplingError` for an object or array with too many members."""
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if not isinstance(value, dict | list):
            continue
        inner = [
            one
            for one in (value.values() if isinstance(value, dict) else value)
            if isinstance(one, dict | list)
        ]
        for count, limit in ((len(inner), MAX_MEMBERS), (len(value), MAX_VALUES)):
            if count > limit:
                raise SamplingError(f"the JSON schema has {count} members in one place, the limit is {limit}")
        waiting += inner


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise EngineError(
            f"answers that follow a schema need llguidance; pip install 'vlkv[serve]' ({error})"
        ) from None
    return llguidance
