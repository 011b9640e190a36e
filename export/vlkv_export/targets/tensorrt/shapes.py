"""The shape ranges of an engine: one or two optimization profiles per graph.

B prompts, S tokens of a call, W observed rows, C cache slots, N pictures.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from vlkv.storage.image_facts import ImageFacts, Rows
from vlkv.storage.manifest import DeviceFacts

Range = tuple[int, int, int]
"""The smallest, the optimal and the largest size."""
Profile = dict[str, list[list[int]]]
"""Three shapes per input; for an input that determines another's size, three values."""

ROWS = 64
PREFILL, DECODE = 0, 1
"""The decoder's profiles: a chunk of one prompt, and one token of each of several prompts."""


def profiles(name: str, model: ir.Model, device: DeviceFacts, image: ImageFacts) -> list[Profile]:
    """The profiles of the graph `name`; pictures of variable size range from one patch to the largest."""
    chunk, slots = device.chunk, (1, max(1, device.capacity // 2), device.capacity)
    one = (1, 1, 1)
    prompt = {"B": one, "S": (1, chunk, chunk), "W": (0, min(ROWS, chunk), chunk), "C": slots, "N": one}
    if name == "score":
        prompt |= {"B": (1, 1, device.batch), "W": (1, min(ROWS, chunk), chunk)}
    if isinstance(image.rule, Rows):
        patch = image.rule.patch
        for side, most in (("high", image.height), ("wide", image.width)):
            prompt[side] = (patch, most // patch // 2 * patch or patch, most)
    calls = [prompt]
    if name == "decoder":
        calls.append({"B": (1, 1, device.batch), "S": one, "W": (0, 0, 1), "C": slots})
    return [
        {str(value.name): _shapes(value, ranges, slots) for value in model.graph.inputs} for ranges in calls
    ]


def _shapes(value: ir.Value, ranges: dict[str, Range], slots: Range) -> list[list[int]]:
    if value.name == "capacity":
        return [[size] for size in slots]
    return [list(_sizes(value, ranges, place)) for place in range(3)]


def _sizes(value: ir.Value, ranges: dict[str, Range], place: int) -> Iterable[int]:
    for size in value.shape or ():
        yield size if isinstance(size, int) else ranges[str(size.value).split("_")[0]][place]
