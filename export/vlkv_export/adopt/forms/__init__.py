"""The forms of attention that `vlkv adopt` recognises, one file each. `FORMS` is tried in order."""

from vlkv_export.adopt.forms import concatenated, group_query
from vlkv_export.adopt.forms.spec import Attention, Form

FORMS: tuple[Form, ...] = (group_query.match, concatenated.match)
EXPECTED = (
    "com.microsoft GroupQueryAttention with past and present, or a Concat of past and new keys that a "
    "MatMul-Softmax-MatMul or a com.microsoft MultiHeadAttention reads"
)
"""The recognised forms in words, for error messages."""

__all__ = ["EXPECTED", "FORMS", "Attention", "Form"]
