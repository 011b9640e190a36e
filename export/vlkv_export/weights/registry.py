"""The weight formats of an engine, by the name that `vlkv build --weights` takes."""

from __future__ import annotations

from vlkv_export.weights.int4 import INT4
from vlkv_export.weights.int8 import INT8
from vlkv_export.weights.spec import Format

FORMATS: dict[str, Format] = {
    form.name: form for form in (Format("float32"), Format("bfloat16"), Format("float16"), INT8, INT4)
}
