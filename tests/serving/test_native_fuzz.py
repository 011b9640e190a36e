"""Questions drawn at random to engines of every weight format and cache dtype, through one batch of a scheduler.

`make fuzz-serving` runs this with sanitizers: of what the questions reach, the operators alone are native code of ours.
"""

from __future__ import annotations

import pytest

from vlkv import POLICIES
from vlkv.errors import VlkvError
from vlkv.generation.question import Question

SHAPE = "llama-gqa-tied"
ENGINES = [("float32", "float32"), ("int8", "int8"), ("int4", "bfloat16")]
QUESTIONS = 60
WAIT = 120


def draw(rng, pictures):
    """A question; some are wrong, and some ask for more than there is."""
    words = rng.choice(
        ["what", "is", "the", "total", "name", "w1", "w7", "unheard"], int(rng.integers(1, 40))
    )
    policy = POLICIES[str(rng.choice(list(POLICIES)))]
    asked = {
        "images": [pictures[int(rng.integers(2))] for _ in range(int(rng.integers(3)))],
        "policy": policy.name,
        "max_new_tokens": int(rng.choice([1, 2, 7, 30])),
        "temperature": float(rng.choice([0.0, 1.5])),
        "top_p": float(rng.choice([1.0, 0.4])),
        "top_k": int(rng.choice([0, 1, 5, 10**6])),
        "seed": int(rng.integers(2**32)),
    }
    if not policy.keeps_all:
        asked["budget"] = float(rng.choice([1e-9, 0.05, 0.3, 0.99, 1.0]))
        if policy.decode == "append" and rng.integers(3) == 0:
            asked["recall"] = float(rng.choice([0.0, 0.01, 0.5, 1.0]))
    for name, values in (("prune", ["blank", "nothing"]), ("logprobs", [0, 20]), ("stop", ["what", "\n"])):
        if rng.integers(6) == 0:
            value = values[int(rng.integers(2))]
            asked[name] = (value,) if name == "stop" else value
    return " ".join(words), asked


@pytest.mark.parametrize("weights, kv_dtype", ENGINES)
def test_questions(engine_of, pictures, rng, weights, kv_dtype):
    engine = engine_of(SHAPE, "native", weights, kv_dtype)
    answered = 0
    with engine.scheduler(slots=3, memory=16 << 20) as scheduler:
        tickets = []
        for number in range(QUESTIONS):
            try:
                prompt, asked = draw(rng, pictures)
                tickets.append(scheduler.submit(Question(prompt, **asked)))
            except VlkvError as error:
                assert "\n" not in str(error)
            if number % 3 == 0 and tickets and rng.integers(2):
                tickets[int(rng.integers(len(tickets)))].cancel()
            if number % 8 == 7:
                for ticket in tickets:
                    try:
                        answered += bool(ticket.wait(WAIT).token_ids)
                    except VlkvError as error:
                        assert "\n" not in str(error)
                tickets = []
        assert scheduler.alive
        assert scheduler.stats().failed == 0
    assert answered > QUESTIONS // 4
