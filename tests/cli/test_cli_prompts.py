"""Questions from files and from standard input, of any length; paths and questions that are not UTF-8."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vlkv.cli import prompts
from vlkv.cli.prompts import read_prompt
from vlkv.errors import PromptError

BAD = os.fsdecode(b"b\xffd")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"what\n", "what"),
        (b"what\r\n", "what"),
        (b"a\n\n", "a\n"),
        (b"\xef\xbb\xbfwhat", "what"),
        ("wie heißt\ndas?".encode(), "wie heißt\ndas?"),
        (b"", ""),
        (b"what " * 100_000, "what " * 100_000),
    ],
)
def test_a_file_or_standard_input(tmp_path, monkeypatch, data, text):
    (tmp_path / "q.txt").write_bytes(data)
    assert read_prompt(None, tmp_path / "q.txt") == text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert read_prompt(None, Path("-")) == text


def test_what_is_refused(tmp_path, monkeypatch):
    (tmp_path / "latin").write_bytes("weiß".encode("latin-1"))
    (tmp_path / "long").write_bytes(b"a" * 11)
    monkeypatch.setattr(prompts, "MAX_BYTES", 10)
    for arguments, said in (
        (("a", Path("-")), "--prompt and --prompt-file were both given"),
        ((None, None), "no question was given: --prompt TEXT, --prompt-file FILE, or --prompt-file -"),
        ((None, tmp_path / "none"), "none: No such file"),
        ((None, tmp_path), "Is a directory"),
        ((None, tmp_path / "latin"), "latin is not UTF-8: byte 3 is 0xdf"),
        ((None, tmp_path / "long"), "long is longer than 0 MiB, the limit of a prompt"),
        ((None, Path("nul\0")), "embedded null byte"),
    ):
        with pytest.raises(PromptError, match=said):
            read_prompt(*arguments)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(PromptError, match="standard input is closed"):
        read_prompt(None, Path("-"))


def test_the_command_reads_more_than_an_argument_holds(built_of):
    program = [sys.executable, "-m", "vlkv.cli.main", "run", str(built_of("llama"))]
    for question, code, said in (
        ("what is the total\n", 0, "prompt tokens a layer"),
        ("what " * 60_000, 2, "vlkv: prompt has 300000 characters"),
    ):
        done = subprocess.run(
            [*program, "--prompt-file", "-", "--max-new-tokens", "2"],
            input=question,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr


@pytest.fixture
def odd(built_of, tmp_path):
    """An engine in a folder whose name is not UTF-8."""
    try:
        return shutil.copytree(built_of("llama"), tmp_path / BAD)
    except (OSError, UnicodeError):
        pytest.skip("the file system takes UTF-8 names only")


def test_paths_that_are_not_utf8(vlkv, odd, built_of, tmp_path):
    cause = "this path is not UTF-8, its byte 0xff begins no character; rename what it names"
    for arguments in (
        ("run", odd, "--prompt", "what"),
        ("eval", odd, "--task", "form-qa", "--samples", 1, "-o", tmp_path / "eval"),
        ("triton", odd, "-o", tmp_path / "repository"),
        ("serve", odd, "--port", 0),
    ):
        code, out, said = vlkv(*arguments)
        assert (code, out, said.count("\n")) == (2, "", 1), said
        assert cause in said
    assert sorted(path.name for path in tmp_path.iterdir()) == [BAD]
    code, _, said = vlkv("run", built_of("llama"), "--prompt", f"what {BAD}")
    assert code == 2
    assert "is the byte 0xff, which is not UTF-8" in said


def test_other_files_may_have_such_names(vlkv, built_of, tmp_path, checkpoint_of):
    folder = tmp_path / BAD
    try:
        folder.mkdir()
    except (OSError, UnicodeError):
        pytest.skip("the file system takes UTF-8 names only")
    shutil.copytree(checkpoint_of("llama"), folder / "checkpoint")
    assert vlkv("export", folder / "checkpoint", "-o", folder / "graphs")[0] == 0
    assert vlkv("build", folder / "graphs", "-o", tmp_path / "engine")[0] == 0
    (folder / "q").write_text("what is the total")
    assert vlkv("run", tmp_path / "engine", "--prompt-file", folder / "q", "--max-new-tokens", 2)[0] == 0
