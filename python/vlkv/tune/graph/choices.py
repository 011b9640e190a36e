"""What may be chosen at the graph level: each optional lowering pass, and the order of those that have none."""

from __future__ import annotations

from itertools import permutations

from vlkv.storage.passes import OPTIONAL_PASSES
from vlkv.tune.operators.constants import Choice, Operator

_FIRST, *_LATER = OPTIONAL_PASSES
_ORDERS = tuple(permutations(_LATER))
PASSES = Operator(
    "passes",
    dict.fromkeys(OPTIONAL_PASSES, (1, 0)) | {"order": tuple(range(len(_ORDERS)))},
    flags={},
)
DESCRIPTION = (
    "The lowering passes of a model's graphs for ONNX Runtime: 1 runs a pass, 0 leaves it out. order is one of "
    + "; ".join(f"{number}: {', '.join(names)}" for number, names in enumerate(_ORDERS))
    + "."
)


def passes_of(choice: Choice) -> tuple[str, ...]:
    """Returns the passes that a choice runs, in their order."""
    values = {name: allowed[0] for name, allowed in PASSES.constants.items()} | dict(choice.constants)
    return tuple(name for name in (_FIRST, *_ORDERS[values["order"]]) if values[name])
