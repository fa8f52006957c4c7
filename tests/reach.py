"""What a container reaches, and a machine beside this one that asks and is asked."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from tests.stack import Stack, docker

Where = tuple[str, int]
# Connects to each of the addresses, and says how that went.
REACH = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor

def reach(where):
    try:
        socket.create_connection(where, timeout=4).close()
    except OSError as error:
        return type(error).__name__
    return "reached"

wheres = json.loads(sys.argv[1])
with ThreadPoolExecutor(len(wheres)) as pool:
    print(json.dumps(list(pool.map(lambda where: reach(tuple(where)), wheres))))
"""
SERVE = """
import socket

with socket.create_server(("", 8000)) as server:
    while True:
        server.accept()[0].close()
"""
TOOLS = """
FROM debian:trixie-slim
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends iproute2
"""
# $1: the link, $2: a process in the other machine. Both networks are for documentation, and for
# links alone; the second stands for where a cloud tells a machine its credentials.
LINK = """
set -eu
ip link add "$1" type veth peer name eth0 netns "$2"
ip address add 198.51.100.1/30 dev "$1"
ip link set "$1" up
ip route add 169.254.77.7/32 dev "$1"
nsenter --target "$2" --net sh -euc '
  ip address add 198.51.100.2/30 dev eth0
  ip address add 169.254.77.7/32 dev eth0
  ip link set eth0 up
  ip route add default via 198.51.100.1'
"""


@dataclass(frozen=True)
class Outside:
    """The other machine: its container, its addresses, and this machine's as it sees it."""

    container: str
    address: Where = ("198.51.100.2", 8000)
    metadata: Where = ("169.254.77.7", 8000)
    here: str = "198.51.100.1"


def outcomes(container: str, wheres: list[Where]) -> dict[Where, str]:
    """What comes of a container's asking there: ``reached`` or an error. It has to have Python."""
    output = docker("exec", container, "python3", "-c", REACH, json.dumps(wheres))
    return dict(zip(wheres, json.loads(output), strict=True))


def reached(container: str, wheres: list[Where]) -> list[Where]:
    """Which of them a container reaches."""
    return [where for where, how in outcomes(container, wheres).items() if how == "reached"]


@contextlib.contextmanager
def outside(stack: Stack) -> Iterator[Outside]:
    """A machine on a link of its own, known to no Docker network; it serves port 8000."""
    tools = f"{stack.project}-tools:local"
    build = ["docker", "build", "--quiet", "--tag", tools, "-"]
    subprocess.run(build, input=TOOLS.encode(), check=True, capture_output=True)
    serve = ("--entrypoint", "python", f"{stack.project}-flow:local", "-c", SERVE)
    container = docker("run", "--detach", "--init", "--network", "none", *serve).strip()
    try:
        pid = docker("inspect", "--format", "{{.State.Pid}}", container).strip()
        powers = ("--privileged", "--network", "host", "--pid", "host")
        docker("run", "--rm", *powers, tools, "sh", "-c", LINK, "sh", f"out-{stack.port}", pid)
        yield Outside(container)
    finally:
        docker("rm", "--force", container)
        docker("image", "rm", tools)


def address(stack: Stack, service: str, network: str) -> str:
    """A service's on one of the stack's networks."""
    container = stack.run("docker", "compose", "ps", "--quiet", service).stdout.strip()
    (facts,) = json.loads(docker("inspect", container))
    networks = facts["NetworkSettings"]["Networks"]
    return str(networks[f"{stack.project}_{network}"]["IPAddress"])


def gateway(network: str) -> str:
    """This machine's address on a network's bridge."""
    text = "{{(index .IPAM.Config 0).Gateway}}"
    return docker("network", "inspect", "--format", text, network).strip()
