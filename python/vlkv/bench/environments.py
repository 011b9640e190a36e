"""Environments of the peers: pip makes each on first use, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from vlkv.errors import BenchError
from vlkv.storage.files import reason, show, write_bytes

READY = "vlkv-ready"
"""The file with the requirements that the environment was made from; it is written last."""
BRITTLE = ("torchvision",)
"""Packages compiled for one build of torch: with another build they break transformers, which does not need them."""


def peer_file(name: str) -> Path:
    """The path of a peer's program, which is run and never imported."""
    spec = find_spec("vlkv_peers")
    if spec is None or not spec.submodule_search_locations:
        raise BenchError("the peers' programs are not installed (package vlkv_peers)")
    for folder in spec.submodule_search_locations:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise BenchError(f"the peers' programs hold no {name}")


def make_environment(folder: Path, requirements: Path, progress: Callable[[str], None]) -> Path:
    """Returns the Python of an environment with these requirements; an existing one is reused.

    Raises:
        BenchError: pip or venv failed, with its last line; the folder is then removed.
    """
    wanted = requirements.read_bytes()
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = folder / READY
    if ready.is_file() and ready.read_bytes() == wanted and python.exists():
        return python
    progress(f"making an environment for {requirements.stem}")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _call([sys.executable, "-m", "venv", str(folder)])
        _call([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)])
        for package in BRITTLE:
            if subprocess.run(
                [str(python), "-c", f"import {package}"], capture_output=True, check=False
            ).returncode:
                _call([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", package])
        write_bytes(ready, wanted)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise BenchError(f"{show(folder)}: {reason(error)}") from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return python


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
        errors = [line for line in lines if line.startswith("ERROR")] or [line for line in lines if line]
        raise BenchError(
            f"{' '.join(command[1:4])} failed: {show(errors[-1][:300]) if errors else 'no output'}"
        )
