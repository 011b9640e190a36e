"""Names of tensors: every generation's to the one canonical name that the graphs are built with.

text.*       language_model.model.*   model.language_model.*   language_model.*
lm_head.*    language_model.lm_head.*   lm_head.*
vision.*     vision_tower.vision_model.*   vision_tower.*   model.vision_tower.*
projector.*  multi_modal_projector.*   model.multi_modal_projector.*
"""

from __future__ import annotations

import re

_PREFIXES = (
    (re.compile(r"(?:model\.)?(?:language_model\.)?lm_head\."), "lm_head."),
    (re.compile(r"(?:model\.)?language_model\.(?:model\.)?"), "text."),
    (re.compile(r"(?:model\.)?vision_tower\.(?:vision_model\.)?"), "vision."),
    (re.compile(r"(?:model\.)?multi_modal_projector\."), "projector."),
)


def canonical(name: str) -> str | None:
    """Return the canonical name of a LLaVA checkpoint's tensor; None where it belongs to no part of it."""
    for pattern, prefix in _PREFIXES:
        match = pattern.match(name)
        if match:
            return prefix + name[match.end() :]
    return None
