"""The targets of `vlkv build`, by the name that `--backend` takes."""

from __future__ import annotations

from vlkv_export.targets import onnxruntime
from vlkv_export.targets.spec import Prepare
from vlkv_export.targets.tensorrt import engine as tensorrt

TARGETS: dict[str, Prepare] = {
    "onnxruntime": onnxruntime.prepare,
    "tensorrt": tensorrt.prepare,
    "tensorrt-rtx": tensorrt.prepare,
}
