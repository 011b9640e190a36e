"""Runs an engine's application on Ray Serve: on a cluster that exists, or on this machine alone."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import ceil
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError

from vlkv.errors import ServerStoppedError, VlkvError
from vlkv.serving.listening import listen, url
from vlkv.serving.ray.app import Cluster, build
from vlkv.storage.files import reason

NAME = "vlkv"
LOCAL = "local"
STARTS = 4
"""How often a local cluster's start is tried."""
PROXY_SECONDS = 60
"""How long the HTTP proxy may take to be ready before it is killed. Ray's 5 s are too few on a busy machine."""
REACH_SECONDS = 10.0
"""How long a cluster's address may take to answer; Ray itself would try for many minutes."""


@contextmanager
def running(cluster: Cluster, host: str, port: int, address: str = LOCAL) -> Iterator[str]:
    """Starts the application, and yields its URL once all replicas are ready. It ends with the context.

    Args:
        cluster: see `Cluster`.
        host: where the HTTP proxy of each machine listens.
        port: its port; 0 takes one that is free on this machine.
        address: of a Ray cluster; `LOCAL` starts one on this machine, which ends with the context, too.

    Raises:
        VlkvError: the port is taken, or there is no such cluster.
        ServerStoppedError: the proxy or the replicas did not start; with the last line of Ray's reason.
    """
    with listen(host, port) as one:
        port = int(one.getsockname()[1])
    local = address == LOCAL
    _reach(address)
    most = cluster.replicas if cluster.most is None else cluster.most
    _join(address, {"num_cpus": ceil(most * cluster.cpus), "include_dashboard": False} if local else {})
    try:
        try:
            serve.start(http_options={"host": host, "port": port})
        except (RayError, TimeoutError) as error:
            raise _stopped("the cluster's HTTP proxy", error) from None
        try:
            serve.run(build(cluster), name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise _stopped("the replicas", error) from None
        yield url(host, port)
    finally:
        with suppress(Exception):  # what has failed is told above
            serve.shutdown() if local else serve.delete(NAME)  # type: ignore[no-untyped-call]
        ray.shutdown()


def _stopped(what: str, error: Exception) -> ServerStoppedError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ServerStoppedError(f"{what} did not start: {lines[-1].strip()}")


def _join(address: str, given: dict[str, Any]) -> None:
    """Connects to a cluster, or starts one. A busy machine may miss the 30 s that Ray gives its start."""
    if address == LOCAL:  # its controller has this process's environment
        os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", str(PROXY_SECONDS))
    for left in reversed(range(STARTS if address == LOCAL else 1)):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **given)
            return
        except Exception as error:  # Ray raises bare exceptions here
            ray.shutdown()
            if not left:
                text = " ".join(str(error).split())
                raise VlkvError(
                    f"no Ray cluster at {address!a:.80}: {type(error).__name__}: {text:.300}"
                ) from None


def _reach(address: str) -> None:
    """Raises `VlkvError` if nothing listens at an address of the form `[ray://]HOST:PORT`."""
    name, colon, number = address.rpartition("://")[2].rpartition(":")
    if not colon or not number.isdecimal():
        return
    try:
        socket.create_connection((name.strip("[]"), int(number)), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise VlkvError(f"no Ray cluster at {address!a:.80}: {reason(error)}") from None
