"""Directories that appear whole: what interrupted and killed writers leave."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys

import pytest

from vlkv.errors import EngineError
from vlkv.storage import directories
from vlkv.storage.directories import new_directory


def write(target, text="new"):
    with new_directory(target) as folder:
        (folder / "manifest.json").write_text('{"kind": "engine", "format_version": 1}')
        (folder / "file").write_text(text)


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path, monkeypatch):
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom vlkv.storage.directories import new_directory\n"
        "with new_directory(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'weights').write_bytes(bytes(99))\n    print(folder, flush=True)\n    time.sleep(60)\n"
    )
    target = tmp_path / "tar[get"
    process = subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE, text=True)
    left = tmp_path / process.stdout.readline().strip().rsplit("/", 1)[1]
    write(target)
    assert left.is_dir()  # it is young
    monkeypatch.setattr(directories, "NEW_SECONDS", 0.0)
    write(target)
    assert left.is_dir()  # its writer lives
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    write(tmp_path / "another")
    assert left.is_dir()
    write(target, "newer")
    assert not left.exists()
    assert (target / "file").read_text() == "newer"
    assert {path.name for path in tmp_path.iterdir()} == {"tar[get", "another"}


def test_a_link_by_such_a_name_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(directories, "NEW_SECONDS", 0.0)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / ".target.0123abcd.part").symlink_to("kept")
    write(tmp_path / "target")
    assert (tmp_path / "kept" / "file").exists()


def test_file_systems_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(directories, "NEW_SECONDS", 0.0)
    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".target.0123abcd.part").mkdir()
    write(tmp_path / "target")
    assert (tmp_path / ".target.0123abcd.part").is_dir()


@pytest.mark.parametrize("at", range(2))
def test_an_interrupted_replacement_leaves_one_whole_directory(tmp_path, monkeypatch, at):
    target, renames = tmp_path / "target", []
    write(target, "old")
    rename = os.rename

    class Path(type(target)):
        def rename(self, to):
            if len(renames) == at:
                renames.append(to)
                raise KeyboardInterrupt
            renames.append(to)
            rename(self, to)
            return to

    monkeypatch.setattr(directories, "Path", Path)
    with pytest.raises(KeyboardInterrupt):
        write(target)
    assert (target / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_parents_go_too_where_one_cannot_be_made(tmp_path):
    with pytest.raises(EngineError, match="File name too long"):
        write(tmp_path / "a" / "b" / ("c" * 250) / "d" / ("e" * 300))
    assert list(tmp_path.iterdir()) == []
