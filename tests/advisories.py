"""An advisory database as `uv audit` asks it: OSV's protocol, on the loopback."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextlib.contextmanager
def advisory_database(vulnerable: str = "") -> Iterator[str]:
    """Its address; it knows of one vulnerability, in the package `vulnerable`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            found = {"vulns": [{"id": "TEST-1", "modified": "2026-01-01T00:00:00Z"}]}
            self.answer(
                {"results": [found if q["package"]["name"] == vulnerable else {} for q in asked]}
            )

        def do_GET(self) -> None:
            fixed = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.9"}]}
            package = {"ecosystem": "PyPI", "name": vulnerable}
            self.answer(
                {
                    "id": "TEST-1",
                    "modified": "2026-01-01T00:00:00Z",
                    "summary": "made up",
                    "affected": [{"package": package, "ranges": [fixed]}],
                }
            )

        def answer(self, found: object) -> None:
            body = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
