"""Other programs on the same checkpoint; each runs in a process of its own and communicates in lines of JSON.

`peers/vlkv_peers/worker.py` describes the protocol. A program's standard error goes to a log beside its environment.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vlkv.bench.environments import make_environment, peer_file
from vlkv.bench.probe import Peak
from vlkv.bench.prompts import Asked
from vlkv.bench.timing import Run
from vlkv.engine import Engine
from vlkv.errors import BenchError
from vlkv.inputs.preprocess import pixel_values
from vlkv.storage.files import show
from vlkv.storage.image_facts import ImageFacts, takes_pictures

PATIENCE = 3600.0
"""The most seconds that an answer may take."""


@dataclass(frozen=True)
class Peer:
    """A program: its name in tables, its environment, its file, and its mode."""

    label: str
    environment: str
    program: str
    mode: str


GROUPS = {
    "hf": (
        Peer("transformers, eager", "hf", "torch_worker.py", "eager"),
        Peer("transformers, SDPA", "hf", "torch_worker.py", "sdpa"),
    ),
    "kvpress": (Peer("kvpress, SnapKV 90%", "kvpress", "torch_worker.py", "snapkv"),),
    "openvino": (
        Peer("OpenVINO GenAI", "openvino", "openvino_worker.py", "full"),
        Peer("OpenVINO GenAI, eviction", "openvino", "openvino_worker.py", "evict"),
        Peer("OpenVINO GenAI, its precision", "openvino", "openvino_worker.py", "default"),
        Peer("OpenVINO GenAI, its precision, eviction", "openvino", "openvino_worker.py", "default-evict"),
        Peer("OpenVINO GenAI, int8 weights", "openvino", "openvino_worker.py", "int8"),
        Peer("OpenVINO GenAI, int8 weights, eviction", "openvino", "openvino_worker.py", "int8-evict"),
        Peer("OpenVINO GenAI, int4 weights", "openvino", "openvino_worker.py", "int4"),
        Peer("OpenVINO GenAI, int4 weights, eviction", "openvino", "openvino_worker.py", "int4-evict"),
    ),
    "llamacpp": (
        Peer("llama.cpp, Q8_0, text alone", "llamacpp", "llamacpp_worker.py", "q8_0"),
        Peer("llama.cpp, Q4_K_M, text alone", "llamacpp", "llamacpp_worker.py", "q4_k_m"),
    ),
}
PEERS = GROUPS | {
    f"{name}-{peer.mode}": (peer,) for name, group in GROUPS.items() if len(group) > 1 for peer in group
}
"""Peers by name: all modes of a program, or one of them."""


class _Answer(msgspec.Struct, kw_only=True):
    """Any answer of a worker."""

    error: str = ""
    versions: dict[str, str] = {}
    first: float = 0.0
    steps: list[float] = []
    whole: float = 0.0
    cache_bytes: int = 0
    tokens: list[list[int]] = []


class PeerArm:
    """A peer's process with the loaded checkpoint. The caller must close it.

    Args:
        label: its name in tables.
        command: the command that starts its program.
        log: the file for its standard error.
        load: the message that makes it load, see `peers/vlkv_peers/worker.py`.
        image: the image facts, which define pixel values.
        decode: token ids to text, for peers that accept no ids.

    Raises:
        BenchError: it does not start, or can't load the checkpoint.
    """

    own = False

    def __init__(
        self,
        label: str,
        command: Sequence[str],
        log: Path,
        load: dict[str, Any],
        image: ImageFacts,
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        self.label, self._image, self._decode, self._log = label, image, decode, log
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        try:
            with log.open("wb") as errors:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=environment | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
                )
        except OSError as error:
            raise BenchError(f"{label} does not start: {error}") from None
        self._lines: Queue[bytes] = Queue()
        self._listener = Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._peak = Peak(self._process.pid)
        try:
            self.versions = self._ask({"load": load}).versions
        except BaseException:
            self.close()
            raise

    def _pixels(self, one: Asked) -> NDArray[np.float32]:
        (layout,) = one.prompt.pictures
        return pixel_values(one.pictures[0], layout, self._image)

    def run(self, asked: Sequence[Asked], new_tokens: int) -> Run:
        """See `Arm.run`. Pixel values are prepared outside the measured time; some peers receive the picture's file."""
        with TemporaryDirectory(prefix="vlkv-bench-") as folder:
            pixels = Path(folder) / "pixels.npy"
            np.save(pixels, np.concatenate([self._pixels(one) for one in asked]))
            pictures = []
            for number, one in enumerate(asked):
                pictures.append(str(Path(folder) / f"{number}.png"))
                one.pictures[0].save(pictures[-1])
            request = {
                "token_ids": [one.prompt.token_ids.tolist() for one in asked],
                "pixels": str(pixels),
                "pictures": pictures,
                "texts": [self._text(one) for one in asked],
                "new_tokens": new_tokens,
            }
            self._peak.reset()
            answer = self._ask({"run": request})
        if len(answer.steps) != new_tokens - 1:
            raise BenchError(
                f"{self.label}: {len(answer.steps) + 1} tokens came, {new_tokens} were asked for"
            )
        return Run(
            first=answer.first,
            steps=answer.steps,
            whole=answer.whole,
            cache_bytes=answer.cache_bytes,
            peak_bytes=self._peak.bytes(),
            tokens=answer.tokens,
        )

    def close(self) -> None:
        """Ends the process."""
        with suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join()

    def _text(self, one: Asked) -> str:
        """The prompt as text, with the image token at the picture's place."""
        ids, places = one.prompt.token_ids, one.prompt.image_positions
        before, after = ids[: places[0]].tolist(), ids[places[-1] + 1 :].tolist()
        return f"{self._decode(before)} {self._image.token} {self._decode(after)}"

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                self._lines.put(line)
        self._lines.put(b"")

    def _ask(self, message: dict[str, Any]) -> _Answer:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(message) + b"\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=PATIENCE)
        except Empty:
            self._process.kill()
            raise BenchError(f"{self.label} did not answer in {PATIENCE:g} s") from None
        except OSError:
            line = b""
        if not line:
            raise BenchError(f"{self.label} ended: {self._last_words()}")
        try:
            answer = msgspec.json.decode(line, type=_Answer)
        except msgspec.MsgspecError as error:
            raise BenchError(f"{self.label} answered {line[:80]!r}: {error}") from None
        if answer.error:
            raise BenchError(f"{self.label}: {show(answer.error)}")
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return f"exit code {code}" + (f", {show(lines[-1][:200])}" if lines else "")


@contextmanager
def started(
    names: Sequence[str],
    engine: Engine,
    checkpoint: Path | None,
    folder: Path,
    threads: int,
    progress: Callable[[str], None],
) -> Iterator[tuple[list[PeerArm], dict[str, str]]]:
    """Yields the named peers' processes, which end with the block, and the reasons why others did not start."""
    arms: list[PeerArm] = []
    failed: dict[str, str] = {}
    try:
        for peer in dict.fromkeys(peer for name in names for peer in PEERS[name]):
            assert checkpoint is not None
            try:
                image = engine.manifest.image
                if not takes_pictures(image):
                    raise BenchError(f"{peer.label} is asked about pictures; this engine takes text alone")
                arms.append(start(peer, folder, checkpoint, threads, image, engine.decode, progress))
            except BenchError as error:
                failed[peer.label] = str(error)
        yield arms, failed
    finally:
        for arm in arms:
            arm.close()


def start(
    peer: Peer,
    folder: Path,
    checkpoint: Path,
    threads: int,
    image: ImageFacts,
    decode: Callable[[Sequence[int]], str],
    progress: Callable[[str], None],
) -> PeerArm:
    """Makes the environment if it is missing, starts the program, and loads the checkpoint."""
    place = folder.resolve() / peer.environment
    python = make_environment(place, peer_file(f"{peer.environment}.txt"), progress)
    progress(f"loading {peer.label}")
    load = {
        "checkpoint": str(checkpoint.resolve()),
        "threads": threads,
        "mode": peer.mode,
        "folder": str(place),
    }
    log = place / f"{peer.mode}.log"
    return PeerArm(peer.label, [str(python), str(peer_file(peer.program))], log, load, image, decode)
