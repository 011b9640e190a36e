"""Pictures of requests: data URIs, and URLs of hosts that the server allows; never local paths."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from urllib.parse import urljoin, urlsplit

import aiohttp
from anyio.to_thread import run_sync

from vlkv.errors import ImageError
from vlkv.serving.openai.protocol import RequestError
from vlkv.serving.wire import from_base64, from_percent

MAX_URL_BYTES = 32 << 20
"""The most bytes of a file fetched from a URL."""
LONG_URI = 1 << 18
"""Characters of a data URI that is read in another thread and beside the body, so that others need not wait for it."""
MOST_HEAD = 256
"""Characters of a data URI before its comma."""
FETCH_SECONDS = 20.0
"""The most seconds of a fetch, including redirects."""


def from_data_uri(uri: str | memoryview) -> bytes:
    """The bytes of `data:image/...;base64,...`, which may be bytes of ASCII. Linear in its length."""
    data = memoryview(uri.encode("ascii", "replace")) if isinstance(uri, str) else uri
    head, comma, _ = bytes(data[: MOST_HEAD + 1]).partition(b",")
    if not comma:
        raise RequestError("image_url is a data URI without a comma", param="image_url")
    form, *options = head.decode("ascii", "replace")[len("data:") :].split(";")
    if form and not form.startswith("image/"):
        raise RequestError(
            f"image_url is a data URI of {form!a:.60}; a picture has a type such as image/png",
            param="image_url",
        )
    body = data[len(head) + 1 :]
    try:
        if "base64" not in options:
            return from_percent(bytes(body))
        decoded = from_base64(body)
    except ImageError as error:
        raise RequestError(f"image_url: {error}", param="image_url") from None
    if decoded is None:
        raise RequestError(f"image_url: {len(body)} characters are not base64", param="image_url")
    return decoded


class Pictures:
    """Reads the pictures of requests.

    Args:
        hosts: names of hosts that pictures may be fetched from; `*` allows every host.
        max_bytes: the most bytes of a file.
    """

    def __init__(self, hosts: Sequence[str] = (), max_bytes: int = MAX_URL_BYTES) -> None:
        self._hosts, self._max_bytes = frozenset(hosts), max_bytes

    async def read(self, url: str, lifted: Mapping[str, memoryview] = MappingProxyType({})) -> bytes:
        """Reads the file of a data URI or an allowed URL. Raises `RequestError` for anything else.

        `lifted` holds data URIs by the names that stand for them.
        """
        if url in lifted:
            return await run_sync(from_data_uri, lifted[url])
        if url[:5].lower() == "data:":
            if len(url) < LONG_URI:
                return from_data_uri(url)
            return await run_sync(from_data_uri, url)
        self._check(url)
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                return await self._fetch(url)
        except TimeoutError:
            raise self._failed(url, f"no answer within {FETCH_SECONDS:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._failed(url, str(error) or type(error).__name__) from None

    def _check(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host = parts.hostname
        except ValueError:
            parts, host = None, None
        if parts is None or parts.scheme not in ("http", "https") or not host:
            raise RequestError(
                f"image_url {url!a:.60} is neither a data URI nor an http(s) URL", param="image_url"
            )
        if "*" not in self._hosts and host not in self._hosts:
            allowed = ", ".join(sorted(self._hosts)) or "none; give the picture as a data URI"
            raise RequestError(
                f"image_url: this server fetches no pictures from {host!a:.80}; allowed hosts: {allowed}",
                param="image_url",
                code="image_url_not_allowed",
            )

    async def _fetch(self, url: str) -> bytes:
        async with aiohttp.ClientSession() as session:
            for _ in range(4):
                async with session.get(url, allow_redirects=False) as reply:
                    if reply.status in (301, 302, 303, 307, 308) and "Location" in reply.headers:
                        url = urljoin(url, reply.headers["Location"])
                        self._check(url)
                        continue
                    if reply.status != 200:
                        raise self._failed(url, f"status {reply.status}")
                    found = bytearray()
                    async for piece in reply.content.iter_chunked(1 << 16):
                        found += piece
                        if len(found) > self._max_bytes:
                            raise self._failed(url, f"more than {self._max_bytes} bytes")
                    return bytes(found)
        raise self._failed(url, "too many redirects")

    def _failed(self, url: str, reason: str) -> RequestError:
        return RequestError(f"image_url {url!a:.80} can't be fetched: {reason:.200}", param="image_url")
