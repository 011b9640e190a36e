"""`generation_config.json`: the settings that change greedy answers, and notes on those that are not honoured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlkv.storage.manifest import GenerationFacts
from vlkv_export.checkpoint.fields import Fields, read_object, show

MAX_BAD_WORDS = 4096
NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "guidance_scale": 1,
    "penalty_alpha": 0,
    "encoder_repetition_penalty": 1,
    "encoder_no_repeat_ngram_size": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "sequence_bias": None,
    "force_words_ids": None,
    "constraints": None,
    "prompt_lookup_num_tokens": None,
}
"""Settings that would change greedy answers and are not honoured, with the values that have no effect."""


def read_generation(folder: Path, vocab: int) -> tuple[GenerationFacts, tuple[str, ...]]:
    """Read the settings, and a note on each that is not honoured. Raises `CheckpointError` for wrong values."""
    path = folder / "generation_config.json"
    if not path.exists():
        return GenerationFacts(), ()
    fields = Fields(read_object(path), str(path))
    words = fields.get("bad_words_ids") or []
    if not isinstance(words, list) or len(words) > MAX_BAD_WORDS:
        raise fields.fail("bad_words_ids", f"a list of at most {MAX_BAD_WORDS} lists of ids")
    facts = GenerationFacts(
        repetition_penalty=fields.number("repetition_penalty", 1.0),
        no_repeat_ngram_size=fields.integer("no_repeat_ngram_size", 0, low=0),
        min_length=fields.integer("min_length", 0, low=0),
        min_new_tokens=fields.integer("min_new_tokens", 0, low=0),
        suppress_tokens=_ids(fields, "suppress_tokens", fields.get("suppress_tokens") or [], vocab),
        begin_suppress_tokens=_ids(
            fields, "begin_suppress_tokens", fields.get("begin_suppress_tokens") or [], vocab
        ),
        bad_words=tuple(_ids(fields, "bad_words_ids", word, vocab) for word in words),
    )
    notes = [
        f"{path.name}: {name} {show(fields.get(name))} is not honoured; answers are those without it"
        for name, neutral in NEUTRAL.items()
        if fields.get(name) not in (None, neutral, False)
    ]
    return facts, tuple(notes)


def _ids(fields: Fields, name: str, value: Any, vocab: int) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(index) is int and 0 <= index < vocab for index in value):
        raise fields.fail(name, f"ids of the vocabulary of {vocab}")
    if name == "bad_words_ids" and not value:
        raise fields.fail(name, "lists that are not empty")
    return tuple(value)
