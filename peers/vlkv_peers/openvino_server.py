"""OpenVINO GenAI's continuous batching behind `/v1/chat/completions`, as much of it as `vlkv load` needs.

OpenVINO GenAI's wheel has no server of its own. `openvino_server.py CHECKPOINT FOLDER MODE PORT THREADS`; the modes are
those of `openvino_worker`. Answers are greedy. With eviction every answer keeps `KEPT_TOKENS` of its prompt.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
from openvino_worker import BLOCK, CACHE_GIB, converted, options
from PIL import Image

KEPT_TOKENS = 96
"""Of a prompt with eviction: a multiple of the cache's blocks, at least three of them."""


def opened(folder: Path, mode: str, threads: int) -> Any:
    """The pipeline of a converted checkpoint."""
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GIB
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = not mode.endswith("evict")
    if mode.endswith("evict"):
        scheduler.use_cache_eviction = True
        scheduler.cache_eviction_config = genai.CacheEvictionConfig(
            BLOCK, BLOCK, KEPT_TOKENS, genai.AggregationMode.NORM_SUM
        )
    return genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", options(mode, threads), {}, {})


class Batching(threading.Thread):
    """The thread that owns the pipeline: it adds requests, steps, and hands the new tokens to who waits for them."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__(daemon=True)
        self._pipeline, self._numbers = pipeline, count()
        self._new: SimpleQueue[tuple[str, list[Any], Any, SimpleQueue[Any]]] = SimpleQueue()
        self._open: list[tuple[Any, SimpleQueue[Any]]] = []

    def ask(self, prompt: str, images: list[Any], config: Any) -> SimpleQueue[Any]:
        """Where lists of token ids arrive, then None; or an exception."""
        out: SimpleQueue[Any] = SimpleQueue()
        self._new.put((prompt, images, config, out))
        return out

    def run(self) -> None:
        """The thread's loop."""
        while True:
            while not self._open or not self._new.empty():
                prompt, images, config, out = self._new.get()
                try:
                    handle = self._pipeline.add_request(next(self._numbers), prompt, images, config)
                except Exception as error:
                    out.put(error)
                    continue
                self._open.append((handle, out))
            self._pipeline.step()
            self._open = [one for one in self._open if self._hand(*one)]

    def _hand(self, handle: Any, out: SimpleQueue[Any]) -> bool:
        """Whether the answer goes on."""
        while handle.can_read():
            for found in handle.read().values():
                out.put(list(found.generated_ids))
        if handle.get_status() == genai.GenerationStatus.RUNNING:
            return True
        out.put(None)
        return False


def asked(body: dict[str, Any], tokenizer: Any) -> tuple[str, list[Any], Any]:
    """Prompt, pictures and settings of a request."""
    texts, pictures = [], []
    for message in body["messages"]:
        content = message["content"]
        parts: list[dict[str, Any]] = (
            [{"type": "text", "text": content}] if isinstance(content, str) else content
        )
        for part in parts:
            if part["type"] == "text":
                texts.append(part["text"])
                continue
            data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
            pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            pictures.append(openvino.Tensor(pixels[np.newaxis]))
    prompt = "<image>\n" * len(pictures) + " ".join(texts)
    config = genai.GenerationConfig()
    config.max_new_tokens = body.get("max_tokens", 256)
    config.do_sample, config.apply_chat_template = False, False
    config.eos_token_id = tokenizer.get_eos_token_id()
    return prompt, pictures, config


class Handler(BaseHTTPRequestHandler):
    """One request; `server` has the thread and the tokenizer."""

    server: Any
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        """`/health`."""
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        """`/v1/chat/completions`, always as a stream."""
        tokenizer = self.server.tokenizer
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            prompt, images, config = asked(body, tokenizer)
        except (KeyError, ValueError, OSError) as error:
            self.send_response(400)
            self.end_headers()
            self.wfile.write(json.dumps({"error": {"message": repr(error)}}).encode())
            return
        out = self.server.batching.ask(prompt, images, config)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        ids: list[int] = []
        said = ""
        while (found := out.get()) is not None:
            if isinstance(found, Exception):
                self._event({"error": {"message": repr(found)}})
                return
            ids += found
            text = tokenizer.decode(ids)
            if text.startswith(said) and not text.endswith("\ufffd") and text != said:
                self._choice({"content": text[len(said) :]}, None)
                said = text
        self._choice({}, "length" if len(ids) >= config.max_new_tokens else "stop")
        self._event({"choices": [], "usage": {"completion_tokens": len(ids)}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _choice(self, delta: dict[str, str], reason: str | None) -> None:
        self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    def _event(self, value: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


def main() -> None:
    """Serves until it is killed."""
    checkpoint, folder, mode, port, threads = sys.argv[1:]
    pipeline = opened(converted(Path(checkpoint), Path(folder), mode), mode, int(threads))
    server: Any = ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    server.daemon_threads, server.tokenizer = True, pipeline.get_tokenizer()
    server.batching = Batching(pipeline)
    server.batching.start()
    server.serve_forever()


if __name__ == "__main__":
    main()
