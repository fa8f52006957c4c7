"""Asks an engine, in whichever container this runs, and prints how long that took: two lists of ms.

Usage: ``python -c … SOCKET BODY``; the standard library alone.
"""

import http.client
import json
import socket
import sys
import time

CONTAINERS, QUESTIONS = 3, 10  # questions about each


def main(path: str, body: str) -> None:
    """Has containers made, and asks about each; leaves none."""
    engine = http.client.HTTPConnection("docker")
    engine.sock = socket.socket(socket.AF_UNIX)
    engine.sock.connect(path)
    asked, made = [], []

    def ask(method: str, target: str, content: str | None = None) -> tuple[float, bytes]:
        start = time.perf_counter()
        headers = {"Content-Type": "application/json"} if content else {}
        engine.request(method, f"/v1.44/containers/{target}", content, headers)
        answer = engine.getresponse()
        found = answer.read()
        took = time.perf_counter() - start
        if answer.status >= 300:
            sys.exit(f"{method} {target}: {answer.status} {found!r}")
        return 1000 * took, found

    for _ in range(CONTAINERS):
        took, found = ask("POST", "create", body)
        made.append(took)
        container = json.loads(found)["Id"]
        asked += [ask("GET", f"{container}/json")[0] for _ in range(QUESTIONS)]
        ask("DELETE", container)
    print(json.dumps([asked, made]))


if __name__ == "__main__":
    main(*sys.argv[1:])
