"""A gate between a client that sends what it likes and an engine that writes everything down."""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

from tests.stack import PROJECT, eventually

NETWORK, VOLUME, IMAGE = "stack_flows", "stack_data", "stack-flow:local"
RUN = "11111111-2222-3333-4444-555555555555"
OURS, THEIRS = "a" * 64, "b" * 64
SETTINGS = {
    "FLOW_IMAGES": f"{IMAGE} history registry.example:5000/team/etl:2",
    "FLOW_VOLUMES": f"{VOLUME},cache",
    "FLOW_LABELS": "team",
    "FLOWS_NETWORK": NETWORK,
    "FLOW_MAX_MEMORY": "4g",
    "FLOW_CPUS": "2",
}
LABELS = {"io.prefect.flow-run-id": RUN}


def create_body(**host: Any) -> dict[str, Any]:
    """What Docker's client makes of the stack's base job template."""
    unset = ("Hostname", "Domainname", "ExposedPorts", "MacAddress", "StopSignal", "Healthcheck")
    return {
        **dict.fromkeys((*unset, "StopTimeout", "Runtime", "Entrypoint", "WorkingDir")),
        **dict.fromkeys(("Tty", "OpenStdin", "StdinOnce", "AttachStdin", "NetworkDisabled"), False),
        "User": "10001:10001",
        "AttachStdout": True,
        "AttachStderr": True,
        "Env": ["PREFECT_API_URL=http://server:4200/api", "X"],
        "Cmd": ["prefect", "flow-run", "execute"],
        "Image": IMAGE,
        "Volumes": {"/data": {}},
        "HostConfig": {
            "NetworkMode": NETWORK,
            "Memory": 1 << 30,
            "MemorySwap": 1 << 30,
            "Binds": [f"{VOLUME}:/data"],
            "ReadonlyRootfs": True,
            "Init": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "PidsLimit": 512,
            "Tmpfs": {"/tmp": "mode=1777,size=256m"},  # noqa: S108
            "LogConfig": {
                "Type": "json-file",
                "Config": {"max-size": "10m", "max-file": "3"},
            },
            **host,
        },
        "NetworkingConfig": {NETWORK: None},
        "Labels": dict(LABELS),
    }


@dataclass
class Call:
    """What reached the engine."""

    method: str
    path: str
    body: bytes


@dataclass
class Engine:
    """Writes down what it is asked, and has every container: `OURS`, and others of theirs."""

    calls: list[Call] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)  # what `wait` waits for

    @contextlib.contextmanager
    def listening(self, path: Path) -> Iterator[None]:
        """Has it listen on a Unix socket."""
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                engine.calls.append(Call(self.command, self.path, body))
                if self.path.endswith("/wait") or "/wait?" in self.path:
                    engine.release.wait(30)
                status, found = engine.answer(self.command, self.path)
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

            def address_string(self) -> str:
                return "gate"

        class Server(ThreadingMixIn, UnixStreamServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: object) -> None:
                pass  # a gate that was stopped

        with Server(str(path), Handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            try:
                yield
            finally:
                server.shutdown()

    def answer(self, method: str, path: str) -> tuple[int, Any]:
        """Status and body."""
        if path.startswith("/v1.44/containers/create"):
            return 201, {"Id": OURS, "Warnings": []}
        if found := re.match(r"/v1\.44/containers/([0-9a-f]{64})/json", path):
            owner = NETWORK if found[1] == OURS else "other_flows"
            return 200, {"Id": found[1], "Config": {"Labels": {"prefect-stack.gate": owner}}}
        if path.startswith("/v1.44/containers/json"):
            return 200, []
        if path.startswith("/v1.44/images/") and path.endswith("/json"):
            built_here = IMAGE in path
            return 200, {"RepoDigests": [] if built_here else ["x@sha256:" + "c" * 64]}
        return 200, {"StatusCode": 0}


class Client:
    """Sends a request just as it is written, and reads the answer."""

    def __init__(self, path: Path) -> None:
        """Takes the gate's socket."""
        self._path = str(path)
        self._socket: socket.socket | None = None

    def send(
        self, method: str, path: bytes | str, body: bytes | None = None, *headers: str
    ) -> tuple[int, Any]:
        """The status and what the JSON says, or None where it is none."""
        target = path if isinstance(path, bytes) else path.encode()
        lines = [f"{method} ".encode() + target + b" HTTP/1.1", b"Host: docker"]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}".encode())
        lines += [header.encode() for header in headers]
        return self.raw(b"\r\n".join(lines) + b"\r\n\r\n" + (body or b""), method)

    def raw(self, request: bytes, method: str = "GET") -> tuple[int, Any]:
        """Sends bytes."""
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(30)
            self._socket.connect(self._path)
        self._socket.sendall(request)
        response = http.client.HTTPResponse(self._socket, method=method)
        response.begin()
        text = response.read()
        if response.will_close or response.status == 400:
            self.close()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, None

    def close(self) -> None:
        """Hangs up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@dataclass
class Gate:
    """One that runs."""

    process: "subprocess.Popen[str]"
    engine: Engine
    client: Client
    log: Path

    @property
    def memory(self) -> int:
        """The most that its process had in memory so far, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024


@contextlib.contextmanager
def gate(folder: Path, **settings: str) -> Iterator[Gate]:
    """The gate as a process of its own, with a recording engine behind it."""
    engine, log = Engine(), folder / "log"
    engine.release.set()
    with engine.listening(folder / "engine"), log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "gate", str(folder / "engine"), str(folder / "gate")],
            cwd=PROJECT,
            env=os.environ | SETTINGS | settings,
            stderr=file,
            text=True,
        )
        client = Client(folder / "gate")
        try:
            eventually("the gate", 20, lambda: (folder / "gate").exists() or None)
            yield Gate(process, engine, client, log)
            assert process.poll() is None, log.read_text()
        finally:
            client.close()
            engine.release.set()
            process.terminate()
            process.wait(10)
