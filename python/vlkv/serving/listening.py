"""Where a server listens: its socket, and its address for messages."""

from __future__ import annotations

import socket

from vlkv.errors import VlkvError
from vlkv.storage.files import reason


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes one that is free. Raises `VlkvError` if that is not possible."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise VlkvError(f"no server at {host} port {port}: {reason(error)}") from None


def url(host: str, port: int) -> str:
    """The URL of a server; an IPv6 address has brackets."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
