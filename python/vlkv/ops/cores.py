"""How many cores this process may use: those that it is bound to, and its control group's quota; and what they are."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int:
    """Whole cores, at least 1. A quota of 1.5 cores is 1: a second thread would be halted half of the time.

    Args:
        groups: where control groups are mounted, of either version.
        membership: the file that says which of them the process is in.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *map(int, _quotas(groups, membership))]))


def default_threads() -> int:
    """Threads of one operator where nothing is said: 0, which leaves it to the backend, on a machine without limits.

    ONNX Runtime binds the threads of a 0 to a core each, those of a number to none.
    """
    cores = usable_cores()
    return 0 if cores == (os.cpu_count() or 1) else cores


def divided_threads(processes: int) -> int:
    """Threads of one operator of each of so many processes, so that they share the cores."""
    return default_threads() if processes <= 1 else max(1, usable_cores() // processes)


@cache
def cpu_facts() -> dict[str, str]:
    """The fields of `/proc/cpuinfo`, of the last core; none where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def own_groups(kind: str, groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> list[Path]:
    """The folders of the control groups that this process is in, parents included, for `kind`: `cpu` or `memory`."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, kinds, path = line.split(":", 2) if line.count(":") >= 2 else ("", "none", "")
        if kinds and kind not in kinds.split(","):
            continue
        roots = [groups / each for each in (kinds, kind)] if kinds else [groups, groups / "unified"]
        for root in roots:
            folder = root / path.lstrip("/")
            for place in (folder, *folder.parents):
                if place == root.parent:
                    break
                found.append(place)
    return found


def _quotas(groups: Path, membership: Path) -> list[float]:
    """Cores of every quota that holds for this process, its groups' parents included."""
    quotas = [_quota(place) for place in own_groups("cpu", groups, membership)]
    return [cores for cores in quotas if cores is not None]


def _quota(place: Path) -> float | None:
    """Cores of one group's quota; None for none."""
    try:
        if (place / "cpu.max").is_file():
            quota, period = (place / "cpu.max").read_text().split()
        else:
            quota = (place / "cpu.cfs_quota_us").read_text()
            period = (place / "cpu.cfs_period_us").read_text()
        return None if quota.strip() == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
