"""Random and mutated manifests make the loader raise `EngineError` and nothing else."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_manifest import good, place

from vlkv.errors import EngineError
from vlkv.storage import manifest as m

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["graphs", "engine", "none", "float32", "../x", "a\nb", "exact", "table.safetensors"])
    | st.text(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Returns a good manifest with up to three fields replaced or dropped, or with bytes changed."""
    content = good()
    for _ in range(draw(st.integers(0, 3))):
        part: Any = content
        while True:
            key = draw(st.sampled_from(sorted(part)))
            if isinstance(part[key], dict) and part[key] and draw(st.booleans()):
                part = part[key]
                continue
            if draw(st.integers(0, 4)) == 0:
                del part[key]
            else:
                part[key] = draw(values)
            break
        if not content:
            break
    data = bytearray(json.dumps(content).encode())
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 5)) == 0 else data)


@settings(max_examples=400, deadline=None)
@given(data=mutated() | st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()))
def test_nothing_but_engine_errors_comes_out(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    directory = tmp_path_factory.getbasetemp() / "fuzz"
    if not directory.exists():
        place(directory, good())
    (directory / m.NAME).write_bytes(data)
    try:
        read = m.read(directory)
        m.verify(directory, read)
    except EngineError as error:
        assert str(error).isprintable(), error
        return
    assert read.text.query_heads % read.text.kv_heads == 0
    assert all((directory / name).parent == directory for name in read.files)
    assert m.decode(m.encode(read)) == read
