"""`vlkv serve --ray`: the same server as replicas on Ray."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from vlkv.cli.console import notes, progress
from vlkv.errors import VlkvError
from vlkv.ops.cores import divided_threads
from vlkv.scheduler.memory import default_memory
from vlkv.scheduler.plan import divide
from vlkv.storage import manifest as manifests


@dataclass(frozen=True)
class Replicas:
    """How many replicas there are, and how large each is.

    Fields:
        fewest: the number of replicas; with `most` the smallest number.
        most: the largest number; None for a fixed number.
        threads: of each replica, which is also how many cores it asks Ray for; 0 for an equal share of this machine's.
    """

    fewest: int
    most: int | None
    threads: int


def serve_on_ray(
    engine: Path,
    place: tuple[str, int],
    address: str,
    replicas: Replicas,
    scheduler: dict[str, Any],
    settings: Any,
    verify: bool,
) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        engine: the engine directory; every machine of the cluster has it at this path.
        place: host and port of the HTTP proxies.
        address: of a Ray cluster, or `local`.
        replicas: see `Replicas`.
        scheduler: settings of each replica's scheduler. Without `memory`, the replicas on this machine share half of
            what is available; on a cluster each takes half of its machine's.
        settings: of each replica's server.
        verify: whether replicas check the engine's files.

    Raises:
        VlkvError: a wrong number, a taken port, no such cluster, no Ray.
        ServerStoppedError: the replicas did not start.
    """
    try:
        from vlkv.serving.ray.app import Cluster
        from vlkv.serving.ray.run import LOCAL, running
    except ImportError as error:
        raise VlkvError(f"vlkv serve --ray needs the packages of vlkv[serve,ray]: {error}") from None
    if replicas.most is not None and replicas.most < replicas.fewest:
        raise VlkvError(f"--most-replicas {replicas.most} is under --replicas {replicas.fewest}")
    shares = replicas.most or replicas.fewest
    manifest = manifests.read(engine)
    text, dtype = manifest.text, manifest.cache_dtype
    if scheduler["memory"] is None and address == LOCAL:
        scheduler = scheduler | {"memory": default_memory(text, scheduler["slots"], shares, dtype)}
    if scheduler["memory"] is not None:  # what is too small is told before anything starts
        sizes = {name: scheduler[name] for name in ("slots", "memory", "capacity", "prompt_tokens")}
        divide(text, text.hidden, dtype=dtype, **sizes)
    cluster = Cluster(
        str(engine.resolve()),
        replicas=replicas.fewest,
        most=replicas.most,
        cpus=replicas.threads or divided_threads(shares),
        verify=verify,
        scheduler=scheduler,
        settings=settings,
    )
    ended = Event()
    with ExitStack() as stack:
        with progress(data=False) as bar:
            bar.step(f"starting {replicas.fewest} replicas on Ray")
            url = stack.enter_context(running(cluster, *place, address))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        notes().print(f"serving {settings.model} at {url}/v1", soft_wrap=True)
        ended.wait()
