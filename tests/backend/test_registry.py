"""The registry of backends: each entry names a module that opens engines.

An error for an unknown name lists the known.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from vlkv.backend import registry
from vlkv.errors import EngineError
from vlkv.storage.manifest import Manifest


@dataclass
class Facts:
    backend: str


def test_every_line_names_a_module_with_an_opener():
    for module in registry.BACKENDS.values():
        spec = find_spec(module)
        assert spec and spec.origin
        assert "\ndef open_backend(" in Path(spec.origin).read_text(), module


def test_backends_are_those_that_a_manifest_may_name():
    known = set(get_args(get_type_hints(Manifest)["backend"])) - {"none"}
    assert {backend for backend, _ in registry.BACKENDS} == known


def test_what_is_unknown_lists_what_is_known(tmp_path):
    with pytest.raises(EngineError, match="unknown device 'tpu'; known: cpu, cuda"):
        registry.open_backend(tmp_path, Facts("onnxruntime"), "tpu", registry.Options())
    with pytest.raises(
        EngineError, match="unknown backend 'other'; known: onnxruntime, tensorrt, tensorrt-rtx"
    ):
        registry.open_backend(tmp_path, Facts("other"), "cpu", registry.Options())


def test_a_backend_without_that_device_lists_its_own(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.BACKENDS, ("other", "cpu"), "vlkv.backend.other")
    with pytest.raises(EngineError, match="backend 'other' has no device 'cuda'; known: cpu"):
        registry.open_backend(tmp_path, Facts("other"), "cuda", registry.Options())
