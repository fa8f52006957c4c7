"""Does the engine answer through the gate? Without anything that takes long to load."""

import socket

gate = socket.socket(socket.AF_UNIX)
gate.settimeout(4)
gate.connect("/run/gate/docker.sock")
gate.sendall(b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n")
answer = gate.recv(64)
if b" 200 " not in answer:
    raise SystemExit(repr(answer))
