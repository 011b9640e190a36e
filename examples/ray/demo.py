"""Runs two replicas of an engine on a local Ray cluster and kills one under load. Reports lost and retried requests.

python examples/ray/demo.py [ENGINE]        # the default is the engine of `make demo`
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import openai

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tiny_vlm"
ENGINE = ROOT / "out" / "tiny_vlm" / "engine"


def main() -> int:
    """Returns 1 if an answer was wrong, or if a request was lost that should have been retried."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=Path, nargs="?", default=ENGINE)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--port", type=int, default=8123)
    given = parser.parse_args()
    if not (given.engine / "manifest.json").is_file():
        print(f"{given.engine} holds no engine; `make demo` builds one", file=sys.stderr)
        return 2
    from vlkv.errors import VlkvError
    from vlkv.serving.ray.app import Cluster
    from vlkv.serving.ray.run import running

    # `vlkv serve ENGINE --ray --replicas 2` does the same
    cluster = Cluster(str(given.engine.resolve()), replicas=2, scheduler={"slots": 4, "memory": 64 << 20})
    try:
        with running(cluster, "127.0.0.1", given.port) as url:
            return load(f"{url}/v1", given.requests, given.clients)
    except VlkvError as error:
        print(error, file=sys.stderr)
        return 2


def load(url: str, requests: int, clients: int) -> int:
    """Sends the requests. After a third of them, kills the replica that answered first."""
    example = json.loads((EXAMPLE / "example.json").read_text())
    picture = base64.b64encode((EXAMPLE / "example.png").read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": example["prompt"]},
    ]
    client = openai.OpenAI(base_url=url, api_key="x", max_retries=0, timeout=120)
    numbers, done, pids = iter(range(requests)), Counter(), Counter()
    lock, killed = threading.Lock(), threading.Event()

    def ask() -> str:
        try:
            raw = client.chat.completions.with_raw_response.create(
                model="llava", messages=[{"role": "user", "content": content}]
            )
        except openai.OpenAIError as error:
            return f"lost: {type(error).__name__}"
        pids[int(raw.headers["x-vlkv-replica"])] += 1
        right = raw.parse().choices[0].message.content.strip() == example["answer"]
        return "right" if right else "wrong"

    def worker() -> None:
        while True:
            with lock:
                if next(numbers, None) is None:
                    return
            found = ask()
            with lock:
                done[found] += 1
                if sum(done.values()) >= requests // 3 and not killed.is_set():
                    killed.set()
                    victim = pids.most_common(1)[0][0]
                    os.kill(victim, signal.SIGKILL)
                    print(f"killed replica {victim} after {sum(done.values())} answers")

    start = time.perf_counter()
    threads = [threading.Thread(target=worker) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    print(f"{requests} requests by {clients} clients in {seconds:.1f} s: {dict(done)}")
    print(f"answers by replica: {dict(pids)}")
    return int(done["wrong"] > 0 or done["right"] < requests - clients)


if __name__ == "__main__":
    sys.exit(main())
