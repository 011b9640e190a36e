"""Many requests to a real tritonserver, disconnecting clients, deadlines, SIGTERM: every lane is given back."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
import urllib.request

import pytest

from serving.asking import PROMPTS, WAIT, encode, post, settled


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
    """Returns how many answers of all models ended as cancelled."""
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
    for _ in range(40):  # on a busy machine an answer may end before the server notices
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
    """Asks many questions and sends SIGTERM when all are accepted.

    Returns text, last event and end of each answer, and the time of SIGTERM.
    """
    import aiohttp

    from vlkv.serving.triton.client import stream

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
    from vlkv.serving.triton.repository import Settings, write_repository
    from vlkv.serving.triton.server import Server

    repository = tmp_path / "models"
    write_repository(Settings(str(shipped), slots=4, threads=1), shipped, repository)
    body, whole = long_answer
    for _ in range(5):  # a busy machine may suspend this process until the answers end; try again
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
