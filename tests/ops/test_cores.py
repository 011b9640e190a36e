"""Cores by binding and by quotas of control groups, both versions, as files."""

from __future__ import annotations

import os

import pytest

from vlkv.ops import cores
from vlkv.ops.cores import default_threads, divided_threads, usable_cores


@pytest.fixture
def eight(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def put(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("member", "files", "count"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "250000 100000\n"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000\n"}, 1),
        ("0::/a\n", {"other/cpu.max": "100000 100000\n"}, 8),
        (
            "3:cpu,cpuacct:/d\n0::/\n",
            {"cpu,cpuacct/d/cpu.cfs_quota_us": "400000", "cpu,cpuacct/d/cpu.cfs_period_us": "100000"},
            4,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("0::/\n", {"cpu.max": "garbage"}, 8),
        ("0::/\n", {"cpu.max": "100000 0"}, 8),
        ("nonsense\n", {"cpu.max": "100000 100000"}, 8),
    ],
)
def test_quotas(eight, tmp_path, member, files, count):
    put(tmp_path / "groups", files)
    (tmp_path / "groups").mkdir(exist_ok=True)
    (tmp_path / "self").write_text(member)
    assert usable_cores(tmp_path / "groups", tmp_path / "self") == count
    assert usable_cores(tmp_path / "groups", tmp_path / "none") == 8


def test_threads(eight, monkeypatch):
    monkeypatch.setattr(cores, "usable_cores", lambda: 8)
    assert [default_threads(), *map(divided_threads, (1, 2, 3, 16))] == [0, 0, 4, 2, 1]
    monkeypatch.setattr(cores, "usable_cores", lambda: 3)
    assert [default_threads(), *map(divided_threads, (1, 2))] == [3, 3, 1]


def test_a_binding_is_a_limit(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5}, raising=False)
    assert usable_cores() <= 2
    assert default_threads() in {1, 2}
