"""Directories and files are written whole or not at all."""

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from vlkv.errors import EngineError
from vlkv.storage.directories import new_directory
from vlkv.storage.files import (
    clone_file,
    copy_file,
    hash_file,
    hash_files,
    link_or_copy,
    reason,
    show,
    write_bytes,
)


def entries(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def fill_old(target: Path, manifest: bytes = b'{"format_version": 99, "kind": "engine"}') -> None:
    target.mkdir()
    (target / "manifest.json").write_bytes(manifest)
    (target / "old.bin").write_bytes(b"old")


def test_hashes_equal_hashlib_and_report_all_bytes(tmp_path: Path) -> None:
    contents = [b"", b"x", os.urandom((2 << 20) + 17)]
    paths = [tmp_path / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    seen: list[int] = []
    found = hash_files(paths, seen.append)
    assert found == {p: hashlib.sha256(c).hexdigest() for p, c in zip(paths, contents, strict=True)}
    assert sum(seen) == sum(map(len, contents))
    assert hash_file(paths[2]) == found[paths[2]]


def test_hash_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"absent: No such file"):
        hash_files([tmp_path / "absent"])


def test_new_directory_appears_at_the_end_with_usual_rights(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "out"
    with new_directory(target) as directory:
        assert directory.parent == target.parent
        assert directory.name.startswith(".out.")
        (directory / "file").write_bytes(b"1")
        assert not target.exists()
    assert entries(target) == ["file"]
    assert entries(target.parent) == ["out"]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("failure", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit(3)])
def test_new_directory_leaves_nothing_on_failure(tmp_path: Path, failure: BaseException) -> None:
    with pytest.raises(type(failure)), new_directory(tmp_path / "deep" / "out") as directory:
        (directory / "half").write_bytes(b"1")
        raise failure
    assert entries(tmp_path) == []


def test_failure_keeps_the_old_engine(tmp_path: Path) -> None:
    fill_old(tmp_path / "out")
    with pytest.raises(RuntimeError), new_directory(tmp_path / "out"):
        raise RuntimeError
    assert entries(tmp_path) == ["out"]
    assert entries(tmp_path / "out") == ["manifest.json", "old.bin"]


@pytest.mark.parametrize("empty", [True, False])
def test_new_directory_replaces_an_empty_one_and_an_engine(tmp_path: Path, empty: bool) -> None:
    target = tmp_path / "out"
    if empty:
        target.mkdir()
    else:
        fill_old(target)
    with new_directory(target) as directory:
        (directory / "new").touch()
        assert entries(target) == ([] if empty else ["manifest.json", "old.bin"])
    assert entries(tmp_path) == ["out"]
    assert entries(target) == ["new"]


def test_new_directory_without_overwrite_keeps_an_engine(tmp_path: Path) -> None:
    fill_old(tmp_path / "out")
    with pytest.raises(EngineError, match="not replaced"), new_directory(tmp_path / "out", overwrite=False):
        pytest.fail("entered")
    assert entries(tmp_path / "out") == ["manifest.json", "old.bin"]


def test_new_directory_goes_through_a_symbolic_link(tmp_path: Path) -> None:
    fill_old(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    with new_directory(tmp_path / "link") as directory:
        (directory / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert entries(tmp_path / "real") == ["new"]


@pytest.mark.parametrize("kind", ["file", "other directory", "other manifest", "parent is a file"])
def test_new_directory_refuses_what_is_not_its_own(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    if kind == "file":
        target.write_bytes(b"mine")
    elif kind == "other directory":
        target.mkdir()
        (target / "thesis.txt").write_bytes(b"mine")
    elif kind == "other manifest":
        fill_old(target, b'{"name": "a web app", "icons": []}')
    else:
        target.write_bytes(b"mine")
        target = target / "below"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(EngineError) as caught, new_directory(target):
        pytest.fail("entered")
    assert "out" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_target_that_appears_meanwhile_is_not_lost(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="not empty"), new_directory(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "precious").touch()
    assert entries(tmp_path) == ["out"]
    assert entries(tmp_path / "out") == ["precious"]


def test_link_shares_the_file_and_follows_symbolic_links(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "link").symlink_to("blob")
    assert link_or_copy(tmp_path / "link", tmp_path / "out")
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "out").samefile(tmp_path / "blob")


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_copy_where_links_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "blob").write_bytes(b"weights")
    assert not link_or_copy(tmp_path / "blob", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"weights"
    assert not (tmp_path / "out").samefile(tmp_path / "blob")
    with pytest.raises(EngineError, match="File exists"):
        link_or_copy(tmp_path / "blob", tmp_path / "out")


def test_a_failed_copy_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "cross")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "blob").write_bytes(b"weights")
    with pytest.raises(EngineError, match="No space left"):
        copy_file(tmp_path / "blob", tmp_path / "out", full)
    monkeypatch.setattr("vlkv.storage.files._PIECE", "no number")
    with pytest.raises(TypeError):
        link_or_copy(tmp_path / "blob", tmp_path / "out")
    assert entries(tmp_path) == ["blob"]


def test_a_copy_is_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlkv.storage.files._PIECE", 3)
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "link").symlink_to("blob")
    told: list[int] = []
    copy_file(tmp_path / "link", tmp_path / "out", told.append)
    assert told == [3, 3, 1]
    assert (tmp_path / "out").read_bytes() == b"weights"
    assert (tmp_path / "out").stat().st_nlink == 1
    with pytest.raises(EngineError, match="File exists"):
        copy_file(tmp_path / "link", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"weights"


@pytest.mark.parametrize("able", [True, False])
def test_a_clone_comes_before_links_and_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    def ioctl(target: int, request: int, source: int) -> None:
        assert request == 0x40049409
        if not able:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        os.write(target, os.pread(source, 100, 0))

    monkeypatch.setattr("fcntl.ioctl", ioctl)
    (tmp_path / "blob").write_bytes(b"weights")
    assert clone_file(tmp_path / "blob", tmp_path / "clone") == able
    assert (tmp_path / "clone").exists() == able
    assert link_or_copy(tmp_path / "blob", tmp_path / "out") != able
    assert (tmp_path / "out").read_bytes() == b"weights"
    with pytest.raises(EngineError, match="File exists"):
        clone_file(tmp_path / "blob", tmp_path / "out")


@pytest.mark.parametrize("case", ["missing", "directory", "loop", "taken"])
def test_link_failures_are_engine_errors(tmp_path: Path, case: str) -> None:
    source = tmp_path / "source"
    if case == "directory":
        source.mkdir()
    elif case == "loop":
        source.symlink_to("source")
    elif case == "taken":
        source.touch()
        (tmp_path / "out").touch()
    with pytest.raises(EngineError, match="source"):
        link_or_copy(source, tmp_path / "out")


def test_write_bytes_replaces_whole_and_keeps_the_old_on_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EngineError, match=r"file: No space left"):
        write_bytes(path, b"three")
    assert path.read_bytes() == b"two"
    assert entries(tmp_path) == ["file"]


def test_names_and_reasons_are_one_line() -> None:
    assert show("a b/ü.png") == "a b/ü.png"
    assert show("a\nb\udc80") == "'a\\nb\\udc80'"
    assert reason(ValueError("one\ntwo")) == "one"
    assert reason(ValueError()) == "ValueError"
    assert reason(FileNotFoundError(errno.ENOENT, "No such file", "/x")) == "No such file"
