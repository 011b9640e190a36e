"""Compares views of device memory, and copies between them, with NumPy on random slices."""

from __future__ import annotations

import numpy as np
import pytest

from backend.host_device import HostDevice, view
from vlkv.backend.device.arrays import copies


def random_slices(rng, shape):
    parts = []
    for size in shape:
        first, last = sorted(rng.integers(0, size + 1, 2).tolist())
        parts.append(slice(first, last))
    return tuple(parts)


def test_copies_between_views(rng):
    device = HostDevice()
    for _ in range(300):
        shape = tuple(rng.integers(1, 6, 4).tolist())
        source, target = (
            device.allocate(shape, "float32"),
            device.allocate(tuple(n + 2 for n in shape), "float32"),
        )
        numbers, garbage = (
            rng.standard_normal(shape, np.float32),
            rng.standard_normal(target.shape, np.float32),
        )
        view(source)[...], view(target)[...] = numbers, garbage
        place = random_slices(rng, shape)
        shift = tuple(int(n) for n in rng.integers(0, 3, 4))
        moved = tuple(slice(p.start + s, p.stop + s) for p, s in zip(place, shift, strict=True))
        device.copy(target[moved], source[place])
        garbage[moved] = numbers[place]
        np.testing.assert_array_equal(view(target), garbage)
        np.testing.assert_array_equal(view(source), numbers)


def test_integers_drop_axes_and_views_of_views_add_up(rng):
    device = HostDevice()
    array = device.allocate((3, 4, 5, 6), "float32")
    numbers = rng.standard_normal((3, 4, 5, 6)).astype(np.float32)
    view(array)[...] = numbers
    part, want = array[1:][-1, 2][1:4], numbers[1:][-1, 2][1:4]
    assert part.shape == want.shape == (3, 6)
    assert part.root is array
    assert part.nbytes == want.nbytes
    host = device.pinned(part.shape, "float32")
    device.download(host, part)
    np.testing.assert_array_equal(host, want)
    with pytest.raises(IndexError):
        array[3]
    with pytest.raises(ValueError, match="step 2"):
        array[::2]


def test_a_dense_array_is_one_copy():
    device = HostDevice()
    whole, other = (device.allocate((2, 3, 8, 4), "float16") for _ in range(2))
    assert [(c.width, c.height) for c in copies(whole, other)] == [(2 * 3 * 8 * 4 * 2, 1)]
    rows = list(copies(whole[:, :, :5], other[:, :, :5]))
    assert [(c.width, c.height) for c in rows] == [(5 * 4 * 2, 3)] * 2


def test_what_does_not_fit_is_refused():
    device = HostDevice()
    array = device.allocate((2, 3), "float32")
    with pytest.raises(ValueError, match="does not fit"):
        list(copies(array, array[:1]))
    with pytest.raises(ValueError, match="does not fit"):
        list(copies(array, device.allocate((2, 3), "int32")))
    assert list(copies(array[:0], array[:0])) == []
