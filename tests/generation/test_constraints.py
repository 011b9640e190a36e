"""Compares the generation settings with transformers' logits processors, on random tokens and logits."""

import warnings

import numpy as np
import pytest

from vlkv import Question
from vlkv.errors import PromptError, SamplingError
from vlkv.generation.constraints import Constraints
from vlkv.generation.sampling import Sampling
from vlkv.generation.sequence import prepare
from vlkv.inputs.prompt import Prompt
from vlkv.storage.manifest import GenerationFacts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from transformers.generation import logits_process as theirs

VOCAB, EOS = 12, (2, 5)


def reference(facts: GenerationFacts, ids: list[int], prompt: int, logits: np.ndarray) -> np.ndarray:
    """Applies the processors in the order of `GenerationMixin._get_logits_processor`."""
    eos = torch.tensor(EOS)
    made = []
    if facts.repetition_penalty != 1:
        made.append(theirs.RepetitionPenaltyLogitsProcessor(facts.repetition_penalty))
    if facts.no_repeat_ngram_size:
        made.append(theirs.NoRepeatNGramLogitsProcessor(facts.no_repeat_ngram_size))
    if facts.bad_words:
        made.append(theirs.NoBadWordsLogitsProcessor([list(word) for word in facts.bad_words], eos))
    if facts.min_length:
        made.append(theirs.MinLengthLogitsProcessor(facts.min_length, eos))
    if facts.min_new_tokens:
        made.append(theirs.MinNewTokensLengthLogitsProcessor(prompt, facts.min_new_tokens, eos))
    if facts.suppress_tokens:
        made.append(theirs.SuppressTokensLogitsProcessor(list(facts.suppress_tokens)))
    if facts.begin_suppress_tokens:
        made.append(theirs.SuppressTokensAtBeginLogitsProcessor(list(facts.begin_suppress_tokens), prompt))
    scores = torch.from_numpy(logits.copy())[None]
    given = torch.tensor([ids])
    for processor in made:
        scores = processor(given, scores)
    return scores[0].numpy()


@pytest.mark.parametrize("trial", range(40))
def test_equals_transformers(trial, rng):
    def some(chance, value, otherwise):
        return value if rng.random() < chance else otherwise

    facts = GenerationFacts(
        repetition_penalty=some(0.6, float(rng.uniform(0.5, 2)), 1.0),
        no_repeat_ngram_size=some(0.6, int(rng.integers(1, 5)), 0),
        min_length=some(0.5, int(rng.integers(1, 12)), 0),
        min_new_tokens=some(0.5, int(rng.integers(1, 6)), 0),
        suppress_tokens=some(0.5, (1, 7), ()),
        begin_suppress_tokens=some(0.5, (3,), ()),
        bad_words=some(0.6, ((2,), (4,), (1, 3), (6, 6, 8)), ()),
    )
    prompt = rng.integers(0, VOCAB, int(rng.integers(1, 9)))
    mine, ids = Constraints(facts, prompt, EOS), prompt.tolist()
    for _ in range(10):
        logits = rng.normal(size=VOCAB).astype(np.float32)
        kept = logits.copy()
        np.testing.assert_array_equal(mine.apply(logits), reference(facts, ids, len(prompt), logits))
        np.testing.assert_array_equal(logits, kept)
        ids.append(int(rng.integers(0, VOCAB)))
        mine.push(ids[-1])


def test_nothing_said_nothing_copied():
    logits = np.zeros(VOCAB, np.float32)
    assert Constraints(GenerationFacts(), np.arange(3), EOS).apply(logits) is logits


def test_a_request_goes_before_the_checkpoint():
    facts = GenerationFacts(repetition_penalty=1.5, min_new_tokens=4, suppress_tokens=(3,))
    assert Sampling().merged(facts) == facts
    own = Sampling(repetition_penalty=1.0, no_repeat_ngram_size=2, min_new_tokens=0).merged(facts)
    assert own == GenerationFacts(no_repeat_ngram_size=2, suppress_tokens=(3,))
    words = Sampling(suppress_tokens=[], bad_words_ids=[[4], [5, 6]]).merged(facts)
    assert words == GenerationFacts(repetition_penalty=1.5, min_new_tokens=4, bad_words=((4,), (5, 6)))


def test_ids_that_are_not_there(engine_of):
    model = engine_of("llama").model
    for fields, said in (
        ({"suppress_tokens": [64]}, "suppress_tokens names token 64; the vocabulary has 64"),
        ({"bad_words_ids": [[1, 99]]}, "bad_words_ids names token 99"),
        (
            {"suppress_tokens": list(range(60)), "bad_words_ids": [[n] for n in range(60, 64)]},
            "name all 64 tokens",
        ),
    ):
        with pytest.raises(SamplingError, match=said):
            prepare(model, Question("what", **fields))


def test_a_long_prompt_costs_a_token_little():
    """Work a token does not grow with the prompt: what was seen is an array, what follows is a set."""
    facts = GenerationFacts(repetition_penalty=1.3, no_repeat_ngram_size=2)
    mine = Constraints(facts, np.tile(np.arange(50), 400), EOS)
    assert len(mine._seen.ids) == 50
    assert all(len(after) == 1 for after in mine._followers.values())
    for token in [*range(40, 150)] * 2:
        mine.push(token)
    assert sorted(mine._seen.ids.tolist()) == list(range(150))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"repetition_penalty": 0}, "repetition_penalty 0 is not above 0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty nan is not above 0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size -1 is not a whole number"),
        ({"no_repeat_ngram_size": 65}, "65 is not a whole number, 0 to 64"),
        ({"repetition_penalty": 1e300}, "is not above 0: 0.01 to 100"),
        ({"suppress_tokens": [-1]}, "at most 1024 token ids"),
        ({"suppress_tokens": "5"}, "at most 1024 token ids"),
        ({"suppress_tokens": list(range(1025))}, "at most 1024 token ids"),
        ({"bad_words_ids": [[]]}, "lists of 1 to 32 token ids"),
        ({"bad_words_ids": [[True]]}, "lists of 1 to 32 token ids"),
        ({"bad_words_ids": [[1]] * 257}, "at most 256 lists"),
        ({"bad_words_ids": [list(range(33))]}, "lists of 1 to 32 token ids"),
        ({"min_new_tokens": 1.5}, "min_new_tokens 1.5 is not a whole number"),
    ],
)
def test_wrong_values(settings, text):
    with pytest.raises(SamplingError, match=text):
        Sampling(**settings)


def test_ids_beyond_the_embedding_table(engine_of):
    prompt = Prompt("", np.array([1, 64]), np.zeros(0, np.int64), -1)
    with pytest.raises(PromptError, match="makes token 64; the model's embedding table has 64 rows"):
        prepare(engine_of("llama").model, Question("x"), prompt)
