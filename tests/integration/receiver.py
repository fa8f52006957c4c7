"""A webhook's other end: prints what it is sent, a line each; `/slow` takes a minute to answer."""

import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Receiver(BaseHTTPRequestHandler):
    """Takes every POST."""

    def do_POST(self) -> None:
        """Prints the body."""
        print(self.rfile.read(int(self.headers["Content-Length"])).decode(), flush=True)
        if self.path == "/slow":
            time.sleep(60)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing but what was sent."""


if __name__ == "__main__":
    ThreadingHTTPServer(("", 8000), Receiver).serve_forever()
