"""A gRPC client that streams the answer to a question about a picture. It only needs `pip install tritonclient[grpc]`.

python grpc_stream.py "What is the total?" --image a.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import tritonclient.grpc as grpc

KINDS = {
    "policy": ("BYTES", np.object_),
    "budget": ("FP64", np.float64),
    "max_tokens": ("INT32", np.int32),
    "temperature": ("FP64", np.float64),
    "top_k": ("INT32", np.int32),
    "top_p": ("FP64", np.float64),
    "seed": ("INT64", np.int64),
    "stream": ("BOOL", np.bool_),
}


def inputs(prompt: str, images: Sequence[bytes] = (), stop: Sequence[str] = (), **settings: object) -> list:
    """Returns the tensors of a request. Pictures are the unchanged files, without base64."""
    tensors = {"prompt": ("BYTES", np.array([prompt.encode()], np.object_))}
    if images:
        tensors["images"] = ("BYTES", np.array(list(images), np.object_))
    if stop:
        tensors["stop"] = ("BYTES", np.array([text.encode() for text in stop], np.object_))
    for name, value in settings.items():
        kind, dtype = KINDS[name]
        tensors[name] = (kind, np.array([value.encode() if isinstance(value, str) else value], dtype))
    made = []
    for name, (kind, array) in tensors.items():
        made.append(grpc.InferInput(name, list(array.shape), kind))
        made[-1].set_data_from_numpy(array)
    return made


def events(
    client: grpc.InferenceServerClient, tensors: list, model: str = "vlkv"
) -> Iterator[dict[str, str]]:
    """Yields responses while they arrive: `text`, and in the last one also `finish_reason` and `usage`.

    Leaving early cancels the request.
    """
    found: SimpleQueue = SimpleQueue()
    client.start_stream(lambda result, error: found.put((result, error)))
    try:
        client.async_stream_infer(model, tensors, enable_empty_final_response=True)
        while True:
            result, error = found.get()
            if error is not None:
                raise error
            response = result.get_response()
            if response.outputs:
                yield {output.name: result.as_numpy(output.name)[0].decode() for output in response.outputs}
            if response.parameters["triton_final_response"].bool_param:
                return
    finally:
        client.stop_stream(cancel_requests=True)


def main() -> int:
    """Asks, prints the answer piece by piece, and then the kept tokens and cache bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--image", type=Path, action="append", default=[])
    parser.add_argument("--url", default="127.0.0.1:8001")
    parser.add_argument("--model", default="vlkv")
    parser.add_argument("--policy", default="shared-question")
    parser.add_argument("--max-tokens", type=int, default=64)
    arguments = parser.parse_args()
    client = grpc.InferenceServerClient(arguments.url)
    tensors = inputs(
        arguments.prompt,
        [path.read_bytes() for path in arguments.image],
        policy=arguments.policy,
        max_tokens=arguments.max_tokens,
        stream=True,
    )
    try:
        for event in events(client, tensors, arguments.model):
            print(event.get("text", ""), end="", flush=True)
            if event.get("usage"):
                usage = json.loads(event["usage"])
    except grpc.InferenceServerException as error:
        print(error.message(), file=sys.stderr)
        return 1
    print(
        f"\n[kept {usage['kept_tokens']} of {usage['prompt_tokens']} prompt tokens a layer, "
        f"{usage['generated_tokens']} generated, cache {usage['cache_bytes']:,} of {usage['cache_bytes_full']:,} bytes]"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
