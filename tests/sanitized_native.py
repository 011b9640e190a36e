"""Plugin of pytest: every `vlkv._native` of this process is the extension that `VLKV_NATIVE` names.

`make fuzz-serving` builds that extension with sanitizers. The installed one stays as it is.
"""

from __future__ import annotations

import importlib.util
import os
import sys

spec = importlib.util.spec_from_file_location("vlkv._native", os.environ["VLKV_NATIVE"])
assert spec is not None and spec.loader is not None
module = importlib.util.module_from_spec(spec)
sys.modules["vlkv._native"] = module
spec.loader.exec_module(module)


def pytest_report_header() -> str:
    """Says which extension runs."""
    return f"vlkv._native: {module.__file__}"
