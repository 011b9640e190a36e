"""The C entry points of vlkv's kernels, as the device layer finds and calls them. No launch succeeds without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlkv.backend import kernels
from vlkv.errors import EngineError
from vlkv.ops.native import native

SIZES = (2, 1, 4, 64)


def test_the_plugin_has_them(plugin):
    found = kernels.find([None, plugin])
    if found is None:
        pytest.skip("the plugin was built without CUDA")
    with pytest.raises(EngineError, match=r"vlkv's kernel failed: \[move_slots\] slot_bytes 3 is odd$"):
        found.move_slots((2, 1, 4, 3), 1, 1, 1, 1, 0)
    with pytest.raises(EngineError, match=r"\[move_slots\] arrays is null$"):
        found.move_slots(SIZES, 0, 1, 1, 1, 0)
    found.move_slots((2, 0, 4, 64), 0, 0, 0, 0, 0)
    with pytest.raises(EngineError, match=r"vlkv's kernel failed: \[pick\] vocab is 0, not in \[1, \d+\]$"):
        found.pick(1, 0, 1, 1, 1, 0)
    found.pick(0, 9, 0, 0, 0, 0)
    assert found.draws
    with pytest.raises(EngineError, match=r"vlkv's kernel failed: \[draw\] vocab is 0, not in \[1, \d+\]$"):
        found.draw(1, 0, 1, 1, 1, 1, 0)
    with pytest.raises(EngineError, match=r"\[draw\] settings is null$"):
        found.draw(1, 9, 256, 0, 256, 256, 0)
    found.draw(0, 9, 0, 0, 0, 0, 0)


def test_a_launch_that_fails_says_why(plugin):
    from vlkv.backend.cuda import compute_capability

    found = kernels.find([plugin])
    if found is None:
        pytest.skip("the plugin was built without CUDA")
    try:
        compute_capability(())
    except EngineError:
        with pytest.raises(EngineError, match=r"\[move_slots\] no launch: .*driver"):
            found.move_slots(SIZES, 256, 256, 256, 256, 0)


def test_libraries_without_them_are_passed_over(tmp_path):
    text = tmp_path / "text.so"
    text.write_text("no library")
    assert (
        kernels.find([text, tmp_path / "none.so"]) == kernels.find()
        or kernels.Library(Path(native().__file__)).cuda
    )
