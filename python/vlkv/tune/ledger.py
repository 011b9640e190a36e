"""The ledger of a run: one JSON line per call, and each candidate's text in a file by its hash. Runs resume from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlkv.errors import TuneError
from vlkv.storage.files import reason, show
from vlkv.tune.toolchain import Candidate

ENDINGS = {
    "source": "c",
    "ir": "ll",
    "assembly": "s",
    "constants": "constants.json",
    "functions": "functions.json",
}


class Ledger:
    """Appends records to FOLDER/ledger.jsonl. `records` are those of earlier runs, without the first line.

    The first line names the source, the harness and the machine; another run's ledger is a `TuneError`.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder, self.path = folder, folder / "ledger.jsonl"
        (folder / "candidates").mkdir(parents=True, exist_ok=True)
        self.records: list[dict[str, Any]] = []
        if self.path.exists():
            self._read(dict(facts))
        else:
            self._append(dict(facts))

    def _read(self, facts: dict[str, Any]) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            first, *self.records = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise TuneError(f"{show(self.path)}: {reason(error)}; take another folder with -o") from error
        for name, value in facts.items():
            if first.get(name) != value:
                raise TuneError(
                    f"{show(self.path)} is of another run ({name} is {first.get(name)!r}, now {value!r}); "
                    "take another folder with -o"
                )
        if whole != data:  # the line that an interruption cut
            self.path.write_bytes(whole)

    def add(self, record: Mapping[str, Any], candidate: Candidate | None) -> None:
        """Writes a call's record, and the candidate's text if there is one."""
        made = dict(record)
        if candidate is not None:
            name = f"{hashlib.sha256(candidate.text.encode()).hexdigest()[:16]}.{ENDINGS[candidate.level]}"
            (self.folder / "candidates" / name).write_text(candidate.text)
            made |= {
                "level": candidate.level,
                "flags": list(candidate.flags),
                "text": name,
                "by": candidate.origin,
            }
        self.records.append(made)
        self._append(made)

    def candidate(self, record: Mapping[str, Any]) -> Candidate:
        """Returns the candidate of a record."""
        text = (self.folder / "candidates" / record["text"]).read_text()
        return Candidate(record["level"], text, tuple(record["flags"]), record["by"])

    def _append(self, record: Mapping[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
