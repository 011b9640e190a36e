"""The manifest is read with a schema, and every wrong field, file and version is named."""

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from vlkv.errors import EngineError
from vlkv.storage import manifest as m


def good() -> dict[str, Any]:
    table = bytes(10 * 8 * 4 + 16)
    return {
        "format_version": 2,
        "kind": "engine",
        "backend": "onnxruntime",
        "operators": "native",
        "cache_dtype": "float32",
        "text": {
            "architecture": "llama",
            "layers": 2,
            "query_heads": 4,
            "kv_heads": 2,
            "head_dim": 2,
            "hidden": 8,
            "vocab": 10,
            "max_positions": 64,
            "sliding_window": None,
            "layer_windows": [],
        },
        "image": {
            "token_id": 3,
            "token": "<image>",
            "tile_features": 4,
            "height": 28,
            "width": 28,
            "resize": "shortest_edge",
            "resize_height": 28,
            "resize_width": 28,
            "crop": True,
            "pad_to_square": False,
            "resample": 3,
            "rescale": 1 / 255,
            "normalize": True,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "rule": {"type": "fixed"},
            "spliced": False,
        },
        "tokens": {"bos": 1, "eos": [2], "pad": None},
        "embedding": {
            "file": "table.safetensors",
            "offset": 16,
            "dtype": "float32",
            "shape": [10, 8],
            "scale": 1.0,
        },
        "chat_template": "{{ messages }}",
        "versions": {"vlkv": "0.1.0"},
        "files": {
            "table.safetensors": {"size": len(table), "sha256": hashlib.sha256(table).hexdigest()},
            "tokenizer.json": {"size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()},
        },
    }


def place(directory: Path, content: dict[str, Any]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / m.NAME).write_text(json.dumps(content))
    (directory / "table.safetensors").write_bytes(bytes(336))
    (directory / "tokenizer.json").write_bytes(b"{}")
    return directory


def changed(path: str, value: object) -> dict[str, Any]:
    content = good()
    *parents, last = path.split("/")
    part = content
    for parent in parents:
        part = part[parent]
    part[last] = value
    return content


def error_of(directory: Path) -> str:
    with pytest.raises(EngineError) as caught:
        m.read(directory)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_reads_what_was_written(tmp_path: Path) -> None:
    read = m.read(place(tmp_path, good()))
    assert read.text.kv_heads == 2
    assert read.image.mean == (0.5, 0.5, 0.5)
    assert read.tokens.eos == (2,)
    m.verify(tmp_path, read)
    m.write(tmp_path, read)
    assert m.read(tmp_path) == read
    absent = {
        "device": None,
        "weights": None,
        "prompt_precision": None,
        "generation": GENERATION,
        "video": None,
    }
    assert json.loads((tmp_path / m.NAME).read_text()) == good() | absent


def test_an_engine_whose_products_rounded_activations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        EngineError, match="weights int8 of a vlkv whose products rounded the activations too"
    ):
        m.read(place(tmp_path, good() | {"weights": "int8"}))
    m.read(place(tmp_path, good() | {"weights": "int8", "prompt_precision": "float32"}))


GENERATION = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "bad_words": [],
}
DEVICE = {"compute_capabilities": ["8.9"], "capacity": 64, "batch": 4, "chunk": 32, "cache": "dynamic"}


def test_a_device_goes_with_engines_for_gpus_alone(tmp_path: Path) -> None:
    read = m.read(place(tmp_path, good() | {"backend": "tensorrt-rtx", "device": DEVICE}))
    assert read.device is not None
    assert read.device.compute_capabilities == ("8.9",)
    for wrong in ({"backend": "tensorrt"}, {"device": DEVICE}):
        assert "and device do not go together" in error_of(place(tmp_path, good() | wrong))
    here = {"backend": "onnxruntime", "cache_dtype": "float16", "device": DEVICE | {"cache": "in-place"}}
    assert m.read(place(tmp_path, good() | here)).device is not None
    for wrong in ({"cache_dtype": "float32"}, {"device": DEVICE}):
        assert "and device do not go together" in error_of(place(tmp_path, good() | here | wrong))
    zero = {"backend": "tensorrt", "device": DEVICE | {"capacity": 0}}
    assert "device.capacity" in error_of(place(tmp_path, good() | zero))


def test_version_1_is_read(tmp_path: Path) -> None:
    old = good() | {"format_version": 1}
    old["image"] = {k: v for k, v in old["image"].items() if k not in ("rule", "tile_features")}
    read = m.read(place(tmp_path, old | {"image": old["image"] | {"tokens_per_image": 4}}))
    assert read == m.read(place(tmp_path / "new", good()))
    assert "tile_features" in error_of(place(tmp_path, old))


@pytest.mark.parametrize("version", [0, 3, 10**30])
def test_another_version_is_told_first(tmp_path: Path, version: int) -> None:
    future = {"format_version": version, "kind": 7, "new": 1, "versions": {"vlkv": "9.9"}}
    text = error_of(place(tmp_path, future))
    if version < 10**20:
        assert f"format version {version}, and this vlkv reads 1 and 2" in text
        assert "9.9" in text
        assert "anew" in text


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("format_version", "1", "format_version"),
        ("surprise", 1, "surprise"),
        ("kind", "plan", "kind"),
        ("kind", "graphs", "backend"),
        ("text/layers", 0, "layers"),
        ("text/layers", 2.5, "layers"),
        ("text/query_heads", 3, "no multiple of kv_heads 2"),
        ("text/vocab", 11, "[11, 8]"),
        ("text/hidden", True, "hidden"),
        ("image/std", [1, 0, 1], "zero"),
        ("image/mean", [1, 0], "mean"),
        ("image/resample", 6, "resample"),
        ("image/resize", "squash", "resize"),
        ("image/resize_height", 0, "resize_height"),
        ("image/token", "", "token"),
        ("tokens/eos", [-1], "eos"),
        ("embedding/file", "absent", "absent"),
        ("embedding/offset", 17, "byte 337 of table.safetensors, which has 336"),
        ("embedding/offset", -1, "offset"),
        ("embedding/shape", [10, 8, 1], "shape"),
        ("embedding/dtype", "float64", "float64"),
        ("files", {}, "table.safetensors"),
        ("files/tokenizer.json", {"size": 2}, "no sha256"),
        ("files/tokenizer.json", {"size": 2, "sha256": "A" * 64}, "sha256"),
        ("files/tokenizer.json", {"size": -2, "sha256": "a" * 64}, "size"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, path: str, value: object, says: str) -> None:
    text = error_of(place(tmp_path, changed(path, value)))
    assert says in text
    assert text.startswith(str(tmp_path / m.NAME))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/etc/passwd", "..\\x", "c:x", "a\nb", "a\0b", "manifest.json", "x" * 256]
)
def test_file_names_stay_inside(tmp_path: Path, name: str) -> None:
    assert "not a plain file name" in error_of(place(tmp_path, good() | _files(name)))


def _files(name: str) -> dict[str, Any]:
    return {"files": good()["files"] | {name: {"size": 0, "sha256": "0" * 64}}}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"[]", "object"),
        (b"\xff\xfe", "manifest.json"),
        (b'{"format_version": NaN}', "manifest.json"),
        (b'{"format_version": 1, "versions": ' + b"[" * 200_000, "manifest.json"),
        (b'{"format_version": 1}', "missing"),
        (b" " * (m.MAX_BYTES + 1), "larger than"),
    ],
)
def test_bytes_that_are_no_manifest(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / m.NAME).write_bytes(data)
    assert says in error_of(tmp_path)


def test_no_directory_and_no_manifest(tmp_path: Path) -> None:
    assert "no such directory" in error_of(tmp_path / "absent")
    assert "holds no manifest.json" in error_of(tmp_path)
    (tmp_path / m.NAME).mkdir()
    assert "holds no manifest.json" in error_of(tmp_path)
    with pytest.raises(EngineError):
        m.read(Path("a\0b"))


@pytest.mark.parametrize("case", ["missing", "truncated", "changed"])
def test_verify_names_the_file(tmp_path: Path, case: str) -> None:
    read = m.read(place(tmp_path, good()))
    file = tmp_path / "table.safetensors"
    if case == "missing":
        file.unlink()
    else:
        file.write_bytes(bytes(335) if case == "truncated" else bytes(335) + b"\1")
    with pytest.raises(EngineError, match=rf"table\.safetensors.*{case}"):
        m.verify(tmp_path, read)
    if case == "changed":
        m.verify(tmp_path, read, hashes=False)
    else:
        with pytest.raises(EngineError, match=r"table\.safetensors"):
            m.verify(tmp_path, read, hashes=False)


def test_write_refuses_what_read_would(tmp_path: Path) -> None:
    read = m.read(place(tmp_path / "a", good()))
    bad = msgspec.structs.replace(read, embedding=msgspec.structs.replace(read.embedding, offset=17))
    with pytest.raises(EngineError, match="byte 337"):
        m.write(tmp_path, bad)
    assert not (tmp_path / m.NAME).exists()


def test_is_manifest_knows_other_versions_and_strangers(tmp_path: Path) -> None:
    assert not m.is_manifest(tmp_path)
    for content, known in [({"format_version": 7, "kind": "graphs"}, True), ({"name": "app"}, False)]:
        (tmp_path / m.NAME).write_text(json.dumps(content))
        assert m.is_manifest(tmp_path) is known
