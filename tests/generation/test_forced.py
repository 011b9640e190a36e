"""Given tokens under a policy: compares logits, and attention with the full cache, with float64 transformers."""

from __future__ import annotations

import numpy as np
import pytest

from models import prompts, tiny
from models.evicting import Evicting
from vlkv.errors import PolicyError, PromptError

STEPS = 12
MARGIN = 2.0**-24 * 2500**0.5 * 30


@pytest.mark.parametrize("operators", ["native", "functions"])
@pytest.mark.parametrize("name", ["full", "vl-cache"])
def test_logits_and_attention(name, operators, engine_of, reference_of, pictures, tolerance, rng):
    engine, reference = engine_of("mistral", operators), reference_of("mistral", "float64")
    asked = prompts.question("text between", pictures, policy=name)
    tokens = rng.integers(len(tiny.SPECIAL), tiny.VOCAB, STEPS).tolist()
    forced = engine.forced(asked, tokens, attention=True)
    steps = list(forced)
    length, heads = forced.result.prompt_tokens, engine.manifest.text.kv_heads
    whole = [np.tile(np.arange(length), (heads, 1))] * engine.manifest.text.layers
    kept = forced.result.positions or whole
    run = Evicting(reference, prompts.inputs(engine, reference, asked), kept, False)
    assert len(steps) == STEPS + 1
    assert steps[0].attention is None
    np.testing.assert_allclose(steps[0].logits, run.logits, rtol=0, atol=tolerance(run.logits))
    for token, step in zip(tokens, steps[1:], strict=True):
        want = run.step(token)
        np.testing.assert_allclose(step.logits, want, rtol=0, atol=tolerance(want))
        for mine, theirs in zip(step.attention, run.attention, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=MARGIN, atol=MARGIN)
            # each row of a query head sums to 1
            group = engine.manifest.text.query_heads / heads
            np.testing.assert_allclose(mine.sum(axis=1), group, rtol=1e-5)


@pytest.mark.parametrize("name", ["elastic", "h2o", "streaming-llm"])
def test_forced_tokens_evict_as_generated_ones_do(name, engine_of, pictures):
    engine = engine_of("llama")
    asked = prompts.question("text between", pictures, policy=name, budget=0.2, max_new_tokens=30)
    (result,) = engine.generate_batch([asked])
    forced = engine.forced(asked, result.token_ids[:-1])
    assert [int(step.logits.argmax()) for step in forced] == result.token_ids
    assert forced.result.kept_tokens == result.kept_tokens
    # it can be run again
    assert len(list(forced)) == len(result.token_ids)


def test_no_tokens(engine_of):
    engine = engine_of("llama")
    asked = prompts.question("no picture", [])
    assert len(list(engine.forced(asked, []))) == 1


def test_what_forced_refuses(engine_of):
    engine = engine_of("llama")
    asked = prompts.question("no picture", [], policy="h2o")
    with pytest.raises(PolicyError, match="'h2o': attention is given for decode 'append' only, not 'lowest'"):
        engine.forced(asked, [10], attention=True)
    with pytest.raises(PromptError, match="token 64 is no id from 0 to 63"):
        engine.forced(asked, [10, 64])
    with pytest.raises(PromptError, match=r"513 given tokens are more than the \d+ positions"):
        engine.forced(asked, [10] * 513)
