"""Helpers of the tests that ask a real tritonserver."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny_vlm"
WAIT = 300
"""Timeout in seconds that suffices on a busy machine."""
PROMPTS = ("what is the type?", "what is the date?", "type?")


def post(server, kind, body, model="vlkv"):
    """Returns status and reply of an HTTP request."""
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
    """Returns the metrics once `least` requests were taken and nothing runs, or the last metrics at the timeout."""
    end = time.monotonic() + seconds
    while True:
        found = server.metrics()
        busy = found["vlkv_slots_used"] + found["vlkv_waiting"] + found["vlkv_cache_bytes"]
        taken = found["vlkv_submitted_total"]
        over = not busy and taken >= least and found["vlkv_finished_total"] == taken
        if over or time.monotonic() > end:
            return found
        time.sleep(0.1)


def encode(data):
    from vlkv.serving.triton.client import encode_image

    return encode_image(data)
