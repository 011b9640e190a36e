"""How much memory caches get where nothing is said: what is at hand, and no more than the model could ever use."""

from __future__ import annotations

from pathlib import Path

from vlkv.ops.cores import GROUPS, own_groups
from vlkv.scheduler.plan import FLOAT, SLOTS
from vlkv.storage.manifest import TextFacts, token_bytes

LEFT = 0.5
"""The share of the memory at hand that caches get; weights, working memory and other processes have the rest."""
UNKNOWN = 1 << 30
"""Where the system does not say what is at hand."""
PROC = Path("/proc")
ENDLESS = 1 << 60


def memory_at_hand(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Bytes that processes may still take: of the machine, and of every control group of this process.

    0 where neither is told.
    """
    found = []
    for line in _read(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    own = own_groups("memory", groups, proc / "self" / "cgroup")
    found += [free for place in {groups, groups / "memory", *own} if (free := _free(place)) is not None]
    return min(found, default=0)


def _free(group: Path) -> int | None:
    """What a control group may still take; None for no limit. Pages of files that nobody uses are free."""
    for most, used, unused in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, taken = _read(group / most).strip(), _read(group / used).strip()
        if limit.isdigit() and taken.isdigit() and int(limit) < ENDLESS:
            facts = dict(
                line.split() for line in _read(group / "memory.stat").splitlines() if line.count(" ") == 1
            )
            return min(int(limit), max(0, int(limit) - int(taken) + int(facts.get(unused, "0"))))
    return None


def default_memory(text: TextFacts, slots: int = SLOTS, shares: int = 1, dtype: str = "float32") -> int:
    """Bytes for caches: `LEFT` of what is at hand, among so many processes, at most that of whole caches in all lanes.

    L layers, B lanes: B + 1 caches of as many tokens as the model has positions are the most of any use.
    `dtype` is the caches'.
    """
    token = text.layers * token_bytes(text, dtype)
    useful = (slots + 1) * text.max_positions * (token + text.hidden * FLOAT)
    hand = memory_at_hand()
    return min(useful, int(hand * LEFT) // max(1, shares) if hand else UNKNOWN)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
