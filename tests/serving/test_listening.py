"""Sockets of servers and their URLs."""

from __future__ import annotations

import pytest

from vlkv.errors import VlkvError
from vlkv.serving.listening import listen, url


def test_a_port_that_is_taken_is_one_line():
    with listen("127.0.0.1", 0) as one:
        host, port = one.getsockname()
        with pytest.raises(VlkvError, match=rf"^no server at 127\.0\.0\.1 port {port}: [^\n]+$"):
            listen(host, port)
    listen(host, port).close()
    with pytest.raises(VlkvError, match=r"^no server at 192\.0\.2\.1 port 0: "):
        listen("192.0.2.1", 0)


@pytest.mark.parametrize("host, shown", [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_urls(host, shown):
    assert url(host, 80) == f"http://{shown}:80"
