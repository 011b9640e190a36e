"""An idle engine leaves the processor to others."""

from __future__ import annotations

import time

from vlkv import Engine


def test_threads_rest_between_runs(built_of, pictures):
    """Without this, its threads spin for over 50 ms and disturb the next session and other processes."""
    engine = Engine.load(built_of("llama-old"), threads=2)
    pause, taken = 0.05, []
    for _ in range(5):
        engine.generate("what is " * 100, pictures[:1], max_new_tokens=2)
        before = time.process_time()
        time.sleep(pause)
        taken.append(time.process_time() - before)
    assert min(taken) < pause / 10, taken
