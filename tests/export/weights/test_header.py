"""Headers of safetensors files, read back by the library."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import load_file

from vlkv_export.weights.header import ALIGNMENT, lay_out


def test_the_library_finds_each_tensor_in_its_place(tmp_path, rng):
    tensors = {
        "a": rng.normal(size=(3, 5)).astype(np.float32),
        "empty": np.zeros((0, 4), np.float16),
        "b": rng.integers(0, 256, (7,), np.uint8),
    }
    codes = {"a": "F32", "empty": "F16", "b": "U8"}
    header, places = lay_out((name, codes[name], one.shape, one.nbytes) for name, one in tensors.items())
    data = header + b"".join(one.tobytes() for one in tensors.values())
    (tmp_path / "w.safetensors").write_bytes(data)
    found = load_file(tmp_path / "w.safetensors")
    assert places["a"].offset == len(header) and len(header) % ALIGNMENT == 0
    for name, one in tensors.items():
        np.testing.assert_array_equal(found[name], one)
        place = places[name]
        assert data[place.offset : place.offset + place.length] == one.tobytes()


def test_a_file_of_nothing(tmp_path):
    header, places = lay_out([])
    (tmp_path / "w.safetensors").write_bytes(header)
    assert not places and not load_file(tmp_path / "w.safetensors")
