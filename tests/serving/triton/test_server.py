"""The model behind a real tritonserver: answers, errors, models that cannot load, the server in the foreground."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from serving.asking import EXAMPLE, PROMPTS, WAIT, encode, post
from vlkv import Question


def events_of(server, body):
    """Yields the events of a streamed answer over HTTP."""
    status, text = post(server, "generate_stream", body | {"stream": True})
    assert status == 200, text
    return [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:")]


def in_pieces(ask):
    """Asks until an answer has several responses. On a busy machine, pieces may be sent together as one response."""
    for _ in range(40):
        found = ask()
        if len(found) > 2:
            return found
    pytest.fail("no answer came in pieces")


@pytest.mark.parametrize("policy", ["full", "vl-cache"])
def test_streamed_whole_and_run_are_one_answer(server, grpc_client, shipped, picture, policy):
    module, client = grpc_client
    command = [sys.executable, "-c", "from vlkv.cli.main import main; main()", "run", str(shipped), "--json"]
    for prompt in PROMPTS[:2]:
        ask = ["--prompt", prompt, "--image", str(EXAMPLE / "example.png"), "--policy", policy]
        done = subprocess.run([*command, *ask, "--max-new-tokens", "20"], capture_output=True, check=True)
        expected = json.loads(done.stdout)
        body = {"prompt": prompt, "images": [encode(picture)], "policy": policy, "max_tokens": 20}
        status, text = post(server, "generate", body)
        whole = json.loads(text)
        assert status == 200, text
        settings = {"policy": policy, "max_tokens": 20, "stream": True}
        tensors = module.inputs(prompt, [picture], **settings)
        by_http = in_pieces(lambda body=body: events_of(server, body))
        by_grpc = in_pieces(lambda tensors=tensors: list(module.events(client, tensors)))
        for found in ([whole], by_http, by_grpc):
            assert "".join(event["text"] for event in found) == expected["text"]
            assert found[-1]["finish_reason"] == expected["finish_reason"]
            usage = json.loads(found[-1]["usage"])
            assert usage["kept_tokens_per_layer"] == expected["kept_tokens"]
            assert usage["generated_tokens"] == len(expected["token_ids"])
            names = ("prompt_tokens", "image_tokens", "cache_bytes", "cache_bytes_full")
            assert [usage[name] for name in names] == [expected[name] for name in names]


def test_sampling_stops_and_several_pictures(server, opened, picture):
    body = {"prompt": "type?", "images": [encode(picture)], "temperature": 1.5, "top_p": 0.9, "seed": 7}
    question = Question(
        "type?", [picture], temperature=1.5, top_p=0.9, seed=7, stop=("0", "7"), max_new_tokens=9
    )
    status, text = post(server, "generate", body | {"stop": ["0", "7"], "max_tokens": 9})
    assert status == 200, text
    assert json.loads(text)["text"] == opened.generate_batch([question])[0].text
    status, text = post(server, "generate", {"prompt": "a", "images": [encode(picture)] * 2})
    assert (status, "1024" in text) == (400, True), (
        "two pictures are more tokens than the model has positions"
    )


def test_transformers_settings_are_inputs(server, opened, picture):
    wanted = opened.generate("type?", [picture], max_new_tokens=8)
    first, second = wanted.token_ids[:2]
    for given, fields in (
        ({"repetition_penalty": 1.8}, {"repetition_penalty": 1.8}),
        ({"no_repeat_ngram_size": 1, "min_new_tokens": 8}, {"no_repeat_ngram_size": 1, "min_new_tokens": 8}),
        ({"suppress_tokens": [first, second]}, {"suppress_tokens": [first, second]}),
        ({"bad_words_ids": [first, -1, second, first]}, {"bad_words_ids": [[first], [second, first]]}),
    ):
        body = {"prompt": "type?", "images": [encode(picture)], "max_tokens": 8} | given
        status, text = post(server, "generate", body)
        assert status == 200, text
        assert (
            json.loads(text)["text"] == opened.generate("type?", [picture], max_new_tokens=8, **fields).text
        )


def big_png(path):
    Image.new("1", (20_000, 20_000)).save(path)
    return path.read_bytes()


def test_each_malformed_input_has_an_error_of_its_own(server, picture, tmp_path):
    image = encode(picture)
    good = {"prompt": "type?", "images": [image], "max_tokens": 3}
    wrong = [
        ({"images": [encode(b"GIF89a nothing")]}, "picture"),
        ({"images": [image[:1717]]}, "base64 of 1717 characters is damaged"),
        ({"images": [encode(picture[:1500])]}, "truncated"),
        ({"images": [encode(big_png(tmp_path / "big.png"))]}, "400 megapixels"),
        ({"images": [image] * 65}, "65 pictures, the limit is 64"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "<image><image> a"}, "2 <image> for 1 given picture"),
        ({"prompt": "x " * 500_000}, "1000000 characters"),
        ({"prompt": "xyz " * 1000}, "positions"),
        ({"policy": "none"}, "unknown policy 'none'"),
        ({"budget": 0.0}, "budget 0.0 is outside"),
        ({"budget": 2.0}, "budget 2.0 is outside"),
        ({"policy": "full", "budget": 0.5}, "does not fit policy 'full'"),
        ({"max_tokens": 0}, "max_tokens 0 is not"),
        ({"temperature": -1.0}, "temperature -1.0 is not"),
        ({"top_p": 0.0}, "top_p 0.0 is not"),
        ({"top_k": -1}, "top_k -1 is not"),
        ({"seed": -1}, "seed -1 is not"),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0 is not"),
        ({"no_repeat_ngram_size": 65}, "no_repeat_ngram_size 65 is not"),
        ({"suppress_tokens": [-2]}, "suppress_tokens [-2] is not"),
        ({"bad_words_ids": [3, -1, 999_999]}, "bad_words_ids names token 999999"),
        ({"stop": [""]}, "stop"),
        ({"prompt": 5}, "non-string"),
        ({"budget": "much"}, "non-number"),
        ({"stream": "yes"}, "non-boolean"),
    ]
    texts = set()
    for change, words in wrong:
        status, text = post(server, "generate", good | change)
        assert status >= 400, change
        assert words in text, text
        texts.add(text)
    assert len(texts) == len(wrong)
    status, text = post(server, "generate", {"images": [image]})
    assert status == 400
    assert "prompt" in text
    assert post(server, "generate", good)[0] == 200


def test_wrong_types_over_grpc(server, grpc_client, picture):
    module, client = grpc_client
    grpc = module.grpc

    def error_of(*tensors):
        with pytest.raises(grpc.InferenceServerException) as caught:
            list(module.events(client, list(tensors)))
        return str(caught.value)

    def tensor(name, array, kind):
        made = grpc.InferInput(name, list(array.shape), kind)
        made.set_data_from_numpy(array)
        return made

    prompt = tensor("prompt", np.array([b"type?"], np.object_), "BYTES")
    assert "inference input 'prompt'" in error_of(tensor("prompt", np.zeros(1, np.int32), "INT32"))
    assert "budget" in error_of(prompt, tensor("budget", np.zeros(1, np.float32), "FP32"))
    assert "shape" in error_of(prompt, tensor("max_tokens", np.ones(2, np.int32), "INT32"))
    assert "UTF-8" in error_of(tensor("prompt", np.array([b"\xff\xfe"], np.object_), "BYTES"))
    assert "nothing" in error_of(prompt, tensor("nothing", np.ones(1, np.int32), "INT32"))


def test_models_without_a_whole_engine_are_not_ready_and_the_log_says_why(server):
    assert server.ready()
    log = server.log.read_text()
    for name, words in (("damaged", "decoder.onnx is changed: SHA-256"), ("missing", "no such directory")):
        assert not server.ready(name)
        assert post(server, "generate", {"prompt": "a"}, name)[0] >= 400
        assert words in log


def test_the_server_at_hand_in_the_foreground(installed, shipped, tmp_path):
    from vlkv.serving.triton.repository import Settings, write_repository
    from vlkv.serving.triton.server import free_port

    def run(*arguments, out=subprocess.PIPE):
        command = [sys.executable, "-m", "vlkv.serving.triton", *map(str, arguments)]
        return subprocess.Popen(command, stdout=out, stderr=out)

    for wrong, words in (([], b"usage"), ([tmp_path / "none"], b"no such directory")):
        process = run(*wrong)
        said = process.communicate(timeout=WAIT)
        assert (process.returncode, said[0], said[1].count(b"\n")) == (2, b"", 1)
        assert words in said[1]
    write_repository(Settings(str(shipped)), shipped, tmp_path / "models")
    ports = [free_port() for _ in range(3)]
    names = ("http", "grpc", "metrics")
    given = [f"--{name}-port={port}" for name, port in zip(names, ports, strict=True)]
    with (tmp_path / "log").open("wb") as log:
        process = run(tmp_path / "models", *given, out=log)
    try:
        end = time.monotonic() + WAIT
        while time.monotonic() < end and process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/v2/models/vlkv/ready", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        assert process.poll() is None, (tmp_path / "log").read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT) == 0
    finally:
        process.kill()
