"""llama.cpp's own server with the text model: slots, continuous batching and reuse of prefixes, at its defaults.

PyPI has it inside the package `xllamacpp`. `llamacpp_server.py CHECKPOINT FOLDER PORT THREADS`. The checkpoint is
written as GGUF in float32 on first use; the cache is float16. A tokenizer must be one of whole words, as in the
checkpoints of `examples/benchmark`. The prompt is the user's text alone: these checkpoints have no chat template.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import gguf_files
import xllamacpp
from worker import fingerprint

SLOTS = 16
"""Answers at once."""
SLOT_TOKENS = 2048
"""Prompt and answer of one slot."""
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def converted(checkpoint: Path, folder: Path) -> Path:
    """The GGUF file in a folder beside the environment, named by path and time stamp of the weights."""
    target: Path = folder / "models" / f"{fingerprint(checkpoint, 'words')}-f32.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        try:
            gguf_files.write(checkpoint, part, words=True)
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)
    return target


def settings(path: Path, port: int, threads: int) -> xllamacpp.CommonParams:
    """What differs from llama.cpp's defaults."""
    found = xllamacpp.CommonParams()
    found.model.path = str(path)
    found.port, found.n_parallel, found.n_ctx = port, SLOTS, SLOTS * SLOT_TOKENS
    found.cpuparams.n_threads = found.cpuparams_batch.n_threads = threads
    found.chat_template, found.ui = TEMPLATE, False
    return found


def main() -> None:
    """Serves until it is killed."""
    checkpoint, folder, port, threads = sys.argv[1:]
    server = xllamacpp.Server(settings(converted(Path(checkpoint), Path(folder)), int(port), int(threads)))
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
