"""The model behind a real tritonserver: answers, errors, load with disconnects, models that can't load, SIGTERM."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlkv import Question

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tiny_vlm"
WAIT = 300
"""Seconds after which nothing will come any more, however busy the machine."""
PROMPTS = ("what is the type?", "what is the date?", "type?")


def post(server, kind, body, model="vlkv"):
    """Status and reply of an HTTP request."""
    request = urllib.request.Request(
        f"{server.url}/v2/models/{model}/{kind}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=WAIT) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def settled(server, seconds=WAIT, least=0.0):
    """The metrics once `least` requests were taken and nothing runs; the last ones where that never comes."""
    end = time.monotonic() + seconds
    while True:
        found = server.metrics()
        busy = found["vlkv_slots_used"] + found["vlkv_waiting"] + found["vlkv_cache_bytes"]
        taken = found["vlkv_submitted_total"]
        over = not busy and taken >= least and found["vlkv_finished_total"] == taken
        if over or time.monotonic() > end:
            return found
        time.sleep(0.1)


@pytest.fixture(scope="module")
def grpc_client(server):
    """The shipped client's module, and a connection."""
    sys.path.insert(0, str(ROOT / "examples" / "triton"))
    try:
        import grpc_stream
    finally:
        sys.path.pop(0)
    return grpc_stream, grpc_stream.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")


def encode(data):
    from vlkv.serving.client import encode_image

    return encode_image(data)


def events_of(server, body):
    """A streamed answer over HTTP."""
    status, text = post(server, "generate_stream", body | {"stream": True})
    assert status == 200, text
    return [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:")]


def in_pieces(ask):
    """An answer of several responses; on a busy machine pieces may wait for one another and go as one."""
    for _ in range(5):
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
        ({"policy": "full", "budget": 0.5}, "does not go with policy 'full'"),
        ({"max_tokens": 0}, "max_tokens 0 is not"),
        ({"temperature": -1.0}, "temperature -1.0 is not"),
        ({"top_p": 0.0}, "top_p 0.0 is not"),
        ({"top_k": -1}, "top_k -1 is not"),
        ({"seed": -1}, "seed -1 is not"),
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


def test_200_mixed_requests_with_cancels_and_disconnects(server, grpc_client, opened, picture, rng):
    module, _ = grpc_client
    image, lock, numbers = encode(picture), threading.Lock(), iter(range(200))
    before = settled(server)
    bodies, fates = [], rng.choice(["read", "leave http", "leave grpc", "late"], 200, p=[0.7, 0.1, 0.1, 0.1])
    for _ in range(200):
        policy = str(rng.choice(["full", "vl-cache"]))
        body = {"prompt": str(rng.choice(PROMPTS)), "policy": policy, "max_tokens": int(rng.integers(1, 9))}
        if rng.integers(5) == 0:
            body["images"] = [image]
        if policy != "full":
            body["budget"] = float(rng.choice([0.1, 0.5]))
        bodies.append(body)
    answers, failures = {}, []

    def leave_http(body):
        request = urllib.request.Request(
            f"{server.url}/v2/models/vlkv/generate_stream",
            json.dumps(body | {"stream": True, "max_tokens": 300, "temperature": 2.0}).encode(),
        )
        with urllib.request.urlopen(request, timeout=WAIT) as reply:
            reply.read(1)

    def over_grpc(body, client, **settings):
        given = {name: value for name, value in body.items() if name not in {"prompt", "images"}} | settings
        return module.inputs(body["prompt"], [picture] if "images" in body else [], **given)

    def work():
        client = module.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            body, fate = bodies[number], fates[number]
            try:
                if fate == "read":
                    status, text = post(server, "generate", body)
                    assert status == 200, text
                    answers[number] = json.loads(text)["text"]
                elif fate == "leave http":
                    leave_http(body)
                elif fate == "leave grpc":
                    tensors = over_grpc(body, client, stream=True, max_tokens=300, temperature=2.0)
                    stream = module.events(client, tensors)
                    next(stream)
                    stream.close()
                else:
                    timed = dict(body, parameters={"timeout": 1000})
                    assert post(server, "generate", timed)[0] in {200, 400}
            except Exception as error:
                failures.append(f"{fate}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)
    after = settled(server, least=before["vlkv_submitted_total"] + 190)
    assert (after["vlkv_slots_used"], after["vlkv_waiting"], after["vlkv_cache_bytes"]) == (0, 0, 0)
    taken = after["vlkv_submitted_total"] - before["vlkv_submitted_total"]
    assert taken == after["vlkv_finished_total"] - before["vlkv_finished_total"]
    assert 190 <= taken <= 200
    assert after["vlkv_cache_bytes_limit"] <= 32 << 20
    for name in ("prefill", "step", "pick", "own"):
        assert after[f"vlkv_{name}_seconds_total"] > before[f"vlkv_{name}_seconds_total"]
    for number in list(answers)[:25]:
        body = bodies[number]
        pictures = [picture] if "images" in body else []
        settings = {
            "policy": body["policy"],
            "budget": body.get("budget"),
            "max_new_tokens": body["max_tokens"],
        }
        assert answers[number] == opened.generate(body["prompt"], pictures, **settings).text


def cancelled(server):
    """Answers that ended as cancelled, of all models."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if 'reason="cancelled"' in line)


def leave_by_http(server, client, body):
    data = json.dumps({**body, "stream": True}).encode()
    with urllib.request.urlopen(f"{server.url}/v2/models/vlkv/generate_stream", data, timeout=WAIT) as reply:
        reply.read(1)


def leave_by_grpc(server, client, body):
    module, opened = client
    settings = {name: value for name, value in body.items() if name != "prompt"}
    stream = module.events(opened, module.inputs(body["prompt"], stream=True, **settings))
    next(stream)
    stream.close()


@pytest.mark.parametrize("leave", [leave_by_http, leave_by_grpc])
def test_a_client_that_leaves_cancels(server, grpc_client, long_answer, leave):
    body, whole = long_answer
    before = cancelled(server)
    for _ in range(40):  # on a busy machine an answer may end before the server hears of it
        first = settled(server)
        leave(server, grpc_client, body)
        after = settled(server, least=first["vlkv_submitted_total"] + 1)
        if cancelled(server) > before:
            break
    assert cancelled(server) == before + 1
    name = "vlkv_generated_tokens_total"
    assert after[name] - first[name] < len(whole.token_ids)


def test_load_of_both_kinds(server, long_answer):
    from vlkv.serving.load import Load, run_load

    body, whole = long_answer
    for load in (Load(8, 4, [body]), Load(8, 4, [body], rate=50.0)):
        report, replies = run_load(server.url, load)
        assert (report.requests, report.answered, report.errors) == (8, 8, {})
        assert report.generated_tokens == sum(reply.tokens for reply in replies) == 8 * len(whole.token_ids)
        assert {reply.text for reply in replies} == {whole.text}
        assert 0 < report.tpot["p50"] < report.whole["p99"]
        assert 0 < report.ttft["p50"] <= report.ttft["p99"] <= report.whole["p99"] <= report.seconds
    bad, replies = run_load(server.url, Load(3, 2, [{"prompt": "a", "budget": 3.0}]))
    assert (bad.answered, sum(bad.errors.values())) == (0, 3)
    assert "budget 3.0" in replies[0].error


def test_a_timeout_ends_an_answer_with_what_it_has(server, long_answer):
    body, whole = long_answer
    status, text = post(server, "generate", {**body, "timeout": 30_000})
    assert status == 200, text
    found = json.loads(text)
    assert found["finish_reason"] == "deadline"
    assert whole.text.startswith(found["text"])
    assert json.loads(found["usage"])["generated_tokens"] < len(whole.token_ids)
    status, text = post(server, "generate", {**body, "timeout": -1})
    assert (status, "deadline" in text) == (400, True)


def asked_while_it_ends(server, body, count):
    """Answers asked at once, SIGTERM when all are taken: text, last event and end of each; the moment of SIGTERM."""
    import aiohttp

    from vlkv.serving.client import stream

    async def ask(session):
        text, last = "", {}
        async for event in stream(session, server.url, body):
            text += event.get("text", "")
            last = event
        return text, last, time.monotonic()

    async def scene():
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            tasks = [asyncio.create_task(ask(session)) for _ in range(count)]
            while (await asyncio.to_thread(server.metrics)).get("vlkv_submitted_total", 0) < count:
                await asyncio.sleep(0.01)
            asked = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*tasks), asked

    return asyncio.run(scene())


def test_sigterm_lets_running_answers_end(installed, shipped, long_answer, tmp_path):
    from vlkv.serving.repository import Settings, write_repository
    from vlkv.serving.server import Server

    repository = tmp_path / "models"
    write_repository(Settings(str(shipped), slots=4, threads=1), shipped, repository)
    body, whole = long_answer
    for _ in range(5):  # a busy machine may let this process sleep until the answers end: that shows nothing
        with Server(repository, tmp_path / "log", grace=WAIT) as server:
            server.wait(timeout=WAIT)
            ended, asked = asked_while_it_ends(server, body, 12)
            assert server.process.wait(WAIT) == 0
        for text, last, _ in ended:
            assert text == whole.text
            assert last["finish_reason"] == whole.finish_reason
            assert json.loads(last["usage"])["generated_tokens"] == len(whole.token_ids)
        if sum(moment > asked for _, _, moment in ended) > 4:
            return
    pytest.fail("every answer ended before SIGTERM: it was never sent while answers ran")


def test_the_server_at_hand_in_the_foreground(installed, shipped, tmp_path):
    from vlkv.serving.repository import Settings, write_repository
    from vlkv.serving.server import free_port

    def run(*arguments, out=subprocess.PIPE):
        command = [sys.executable, "-m", "vlkv.serving", *map(str, arguments)]
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
