"""The upstream, served for real on the loopback."""

import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn

from upstream.app import app


@pytest.fixture(scope="session")
def upstream_url() -> Iterator[str]:
    """Its address, on a port of its own."""
    # Listening before the server runs: early requests wait in the backlog instead of failing.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield "http://{}:{}".format(*listener.getsockname())
        finally:
            server.should_exit = True
            thread.join()
