"""Questions of a harness, made into those of vlkv and answered in batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from vlkv import Engine, Question
from vlkv.errors import EvalError

PLACE = "<image>"
NEW_TOKENS = 256


def question(text: str, visuals: Sequence[Any], limits: Mapping[str, Any], **settings: Any) -> Question:
    """One question.

    Args:
        text: with a place `<image>` for each picture, or none; places of another number are left out.
        visuals: Pillow images, and paths of pictures or videos.
        limits: the harness's words for sampling: `max_new_tokens`, `temperature`, `do_sample`, `top_p`, `until`.
        **settings: other fields of `Question`.

    Raises:
        EvalError: the harness wants beams.
    """
    if (limits.get("num_beams") or 1) > 1:
        raise EvalError(f"the task wants {limits['num_beams']} beams; vlkv answers with one")
    videos = [one for one in visuals if _is_video(one)]
    images = [one for one in visuals if not _is_video(one)]
    if text.count(PLACE) not in (0, len(images)):
        text = text.replace(PLACE, "")
    until = limits.get("until") or ()
    greedy = limits.get("do_sample") is False
    return Question(
        text,
        images,
        videos=videos,
        max_new_tokens=int(limits.get("max_new_tokens") or NEW_TOKENS),
        temperature=0.0 if greedy else float(limits.get("temperature") or 0.0),
        top_p=float(limits.get("top_p") or 1.0),
        stop=(until,) if isinstance(until, str) else tuple(until),
        **settings,
    )


def answers(engine: Engine, questions: Iterable[Question], batch: int) -> list[str]:
    """The answers in the order of the questions, `batch` at a time, or as many as the engine's device takes."""
    facts = engine.manifest.device
    size = batch if facts is None else min(batch, facts.batch)
    rest = iter(questions)
    texts: list[str] = []
    while asked := list(islice(rest, size)):
        texts += [result.text for result in engine.generate_batch(asked)]
    return texts


def _is_video(visual: Any) -> bool:
    return isinstance(visual, str) and visual.lower().endswith(
        (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
    )
