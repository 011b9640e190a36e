"""`make serve-demo`: starts a real tritonserver, streams an answer about the shipped picture, and stops the server."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from vlkv.errors import VlkvError
from vlkv.serving.triton.repository import Settings, write_repository
from vlkv.serving.triton.server import Server

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "tiny_vlm"


def main() -> int:
    """Returns 1 if the answer is wrong, and 2 if there is no server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--gpus", default="", help="device numbers, such as 0,1; default: the CPU")
    arguments = parser.parse_args()
    engine, gpus = arguments.engine, tuple(int(number) for number in arguments.gpus.split(",") if number)
    example = json.loads((EXAMPLE / "example.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "model_repository"
        write_repository(Settings(str(engine.resolve()), gpus=gpus), engine, repository)
        start = perf_counter()
        try:
            with Server(repository, Path(folder) / "server.log") as server:
                server.wait()
                print(f"tritonserver is ready after {perf_counter() - start:.1f} s: {server.url}")
                ask = [sys.executable, str(HERE / "grpc_stream.py"), example["prompt"]]
                ask += ["--image", str(EXAMPLE / "example.png"), "--url", f"127.0.0.1:{server.grpc_port}"]
                print(
                    f"question  {example['prompt']}\nexpected  {example['answer']}\nanswer    ",
                    end="",
                    flush=True,
                )
                done = subprocess.run(ask, stdout=subprocess.PIPE, text=True, check=False)
                print(done.stdout)
                code = server.stop()
        except VlkvError as error:
            print(error, file=sys.stderr)
            return 2
        print(f"tritonserver has stopped, exit code {code}")
    return int(done.returncode or done.stdout.split("\n")[0] != example["answer"] or code != 0)


if __name__ == "__main__":
    sys.exit(main())
