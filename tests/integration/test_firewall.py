"""What is on the flows' network reaches the stack and the world, and of this machine nothing."""

import contextlib
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.reach import REACH, Where, address, gateway, outcomes, outside, reached
from tests.stack import ACTIVITY_URL, DAILY, Stack, docker, eventually

pytestmark = pytest.mark.timeout(900)
REFUSALS = {"gaierror", "TimeoutError", "ConnectionRefusedError", "OSError"}
# Tries one address again and again, until its input ends.
INSIST = """
import socket, sys, threading

done, tries = threading.Event(), 0
threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
while not done.is_set():
    tries += 1
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=0.2).close()
        print("reached")
    except OSError:
        pass
print(tries)
"""


class Listeners:
    """Ports of this machine that answer, one for each of its addresses that is of interest."""

    def __init__(self, exits: contextlib.ExitStack, **addresses: str) -> None:
        """Listens until `exits` closes; TCP, and UDP for one more on all addresses."""
        self.hosts = [host for host in addresses.values() if host != "0.0.0.0"]  # noqa: S104
        self.sockets = {
            name: exits.enter_context(socket.create_server((host, 0)))
            for name, host in addresses.items()
        }

    def port(self, name: str) -> int:
        """A listener's."""
        return int(self.sockets[name].getsockname()[1])

    @property
    def wheres(self) -> list[Where]:
        """All ways to reach one."""
        found = []
        for name, listener in self.sockets.items():
            own = listener.getsockname()[0]
            hosts = self.hosts if own == "0.0.0.0" else [own]  # noqa: S104
            found += [(host, self.port(name)) for host in hosts]
        return found


@pytest.fixture
def listeners(stack: Stack, first_run: dict[str, Any]) -> Iterator[Listeners]:
    with contextlib.ExitStack() as exits:
        probe = exits.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        probe.connect(("192.0.2.1", 9))  # sends nothing; for the address that it would be sent from
        yield Listeners(
            exits,
            everywhere="0.0.0.0",  # noqa: S104
            another="0.0.0.0",  # noqa: S104
            bridge=gateway(stack.flows_network),
            docker0=gateway("bridge"),
            outer=probe.getsockname()[0],
        )


@pytest.fixture
def flow(stack: Stack, first_run: dict[str, Any]) -> Iterator[str]:
    """A real flow run's container, at work."""
    run = stack.start(DAILY, url=f"{ACTIVITY_URL}?fault_delay=60")
    container = stack.container(run)
    stack.running(run)
    yield container
    docker("kill", container)
    stack.finished(run)
    stack.cleared(run)


def service(stack: Stack, name: str) -> str:
    """The id of a service's container."""
    return stack.run("docker", "compose", "ps", "--all", "--quiet", name).stdout.strip()


def tables(stack: Stack) -> list[str]:
    """This stack's in the machine's packet filter."""
    output = docker(
        *("run", "--rm", "--network=host", "--cap-drop=ALL", "--cap-add=NET_ADMIN"),
        *(f"{stack.project}-firewall:local", "nft", "list", "tables"),
    )
    return re.findall(rf"\bflows-{stack.port}\b", output)


def test_a_flow_reaches_the_stack_and_the_world_and_nothing_of_this_machine(
    stack: Stack, listeners: Listeners, flow: str
) -> None:
    postgres = address(stack, "postgres", "backend")
    # What apt in the image would ask, as the build has.
    mirrors = docker("exec", flow, "grep", "-rhoP", r"https?://\K[^/\s]+", "/etc/apt/").split()
    world = (mirrors[0], 80)
    there = [("server", 4200), ("upstream", 8000), world]
    closed = [
        ("postgres", 5432),
        (postgres, 5432),
        (address(stack, "server", "backend"), 4200),
        ("gate", 2375),
        ("firewall", 80),
        ("worker", 8080),
        ("fork-worker", 8080),
        *((host, port) for host in listeners.hosts for port in (22, 2375, 2376, 2377, 5432)),
        *((host, stack.port) for host in listeners.hosts),
        *((host, int(stack.settings["UPSTREAM_PORT"])) for host in listeners.hosts),
        *listeners.wheres,
    ]
    with socket.create_server(("127.0.0.1", 0)) as for_itself:
        closed += [(host, for_itself.getsockname()[1]) for host in listeners.hosts]
        found = outcomes(flow, [*there, *closed])
    assert [where for where, how in found.items() if how == "reached"] == there
    assert set(found.values()) <= REFUSALS | {"reached"}
    fork_worker = service(stack, "fork-worker")
    assert reached(fork_worker, [*there, *listeners.wheres]) == there
    sockets = docker("exec", flow, "find", "/run", "/var/run/", "/tmp", "-type", "s")  # noqa: S108
    assert sockets == ""


def test_nor_does_the_server_or_postgres_by_their_own_network(
    stack: Stack, listeners: Listeners
) -> None:
    """Whoever has the login can have the server post a webhook anywhere."""
    backend = gateway(f"{stack.project}_backend")
    port = listeners.port("everywhere")
    wheres = [(host, port) for host in (backend, *listeners.hosts)]
    there = ("postgres", 5432)
    assert reached(service(stack, "server"), [there, *wheres]) == [there]
    connect = ("timeout", "4", "bash", "-c", f"</dev/tcp/{backend}/{port}")
    asked = ["docker", "exec", service(stack, "postgres"), *connect]
    assert "refused" in subprocess.run(asked, capture_output=True, text=True).stderr
    try:
        stack.let_reach(str(port))  # for flows
        assert reached(service(stack, "server"), [(backend, port)]) == []
        stack.let_reach("all")
        assert reached(service(stack, "server"), [there, *wheres]) == [there, *wheres]
        assert subprocess.run(asked, capture_output=True).returncode == 0
    finally:
        stack.let_reach("")


def test_a_clouds_credentials_and_a_neighbours_way_in(
    stack: Stack, listeners: Listeners, flow: str
) -> None:
    """An engine before 28 lets in who sends to a container's own address."""
    inner = [
        (address(stack, "server", "flows"), 4200),
        (address(stack, "server", "backend"), 4200),
        (address(stack, "upstream", "flows"), 8000),
    ]
    engine = docker("version", "--format", "{{.Server.Version}}")
    let_in = [inner[0], inner[2]] if int(engine.split(".")[0]) < 28 else []
    with outside(stack) as other:
        here = (other.here, listeners.port("everywhere"))
        world, metadata = other.address, other.metadata
        assert reached(flow, [world, metadata]) == [world]
        assert reached(service(stack, "server"), [world, metadata]) == [world]
        assert reached(other.container, [here, *inner]) == [here]
        try:
            stack.let_reach("metadata 5432")
            assert reached(flow, [world, metadata]) == [world, metadata]
            stack.let_reach("all")
            assert reached(other.container, [here, *inner]) == [here, *let_in]
        finally:
            stack.let_reach("")


def test_ports_that_other_containers_publish_are_closed_too(
    stack: Stack, listeners: Listeners, flow: str
) -> None:
    serve = ("--publish=8000", f"{stack.project}-flow:local", "python", "-m", "http.server")
    other = docker("run", "--detach", "--rm", *serve).strip()
    try:
        port = int(docker("port", other, "8000/tcp").split()[0].rsplit(":", 1)[1])
        wheres = [(host, port) for host in listeners.hosts]
        assert reached(flow, wheres) == []
        stack.let_reach(str(port))
        assert reached(flow, wheres) == wheres
    finally:
        stack.let_reach("")
        docker("kill", other)


def test_udp_does_not_get_through_either(stack: Stack, listeners: Listeners, flow: str) -> None:
    send = "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
    send += "s.sendto(b'x', (sys.argv[1], int(sys.argv[2])))"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 0))  # noqa: S104
        sock.settimeout(2)
        where = (gateway(stack.flows_network), str(sock.getsockname()[1]))
        docker("exec", flow, "python", "-c", send, *where)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        stack.let_reach(where[1])
        try:
            docker("exec", flow, "python", "-c", send, *where)
            assert sock.recv(1) == b"x"
        finally:
            stack.let_reach("")


def test_other_networks_are_left_alone(stack: Stack, listeners: Listeners) -> None:
    image = f"{stack.project}-flow:local"
    output = docker("run", "--rm", image, "python", "-c", REACH, json.dumps(listeners.wheres))
    assert set(json.loads(output)) == {"reached"}


def test_host_ports_are_let_through_and_no_others(
    stack: Stack, listeners: Listeners, flow: str
) -> None:
    ports = [listeners.port("everywhere"), listeners.port("bridge")]
    try:
        stack.let_reach("  ".join(map(str, ports)))
        open_ = [where for where in listeners.wheres if where[1] in ports]
        assert reached(flow, listeners.wheres) == open_
        stack.let_reach("all")
        assert reached(flow, listeners.wheres) == listeners.wheres
        assert tables(stack) == []
    finally:
        stack.let_reach("")
    assert reached(flow, listeners.wheres) == []


def test_the_rule_outlives_its_service(stack: Stack, listeners: Listeners, flow: str) -> None:
    """Killed, it leaves the rule; replaced, it leaves no gap; what somebody empties is filled."""
    firewall = service(stack, "firewall")
    docker("kill", firewall)
    assert reached(flow, listeners.wheres) == []
    assert "firewall: is exited" in stack.make("status", code=2)
    docker("start", firewall)
    healthy(firewall)

    # Its end may end the shell that asks for it, too.
    subprocess.run(["docker", "exec", firewall, "sh", "-c", "kill -9 -1"], capture_output=True)
    eventually("a restart", 20, lambda: restarts(firewall) > 0 or None)
    healthy(firewall)
    assert reached(flow, listeners.wheres) == []

    where = (listeners.hosts[0], str(listeners.port("everywhere")))
    insist = subprocess.Popen(
        ["docker", "exec", "--interactive", flow, "python", "-c", INSIST, *where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        stack.let_reach(str(listeners.port("another")))
        stack.let_reach("")
    finally:
        output, _ = insist.communicate()
    assert service(stack, "firewall") != firewall
    assert "reached" not in output
    assert int(output) > 1000

    firewall = service(stack, "firewall")
    docker("exec", firewall, "nft", "delete", "table", "inet", f"flows-{stack.port}")
    assert reached(flow, listeners.wheres) == listeners.wheres
    eventually("the rule", 30, lambda: reached(flow, listeners.wheres) == [] or None)


def restarts(container: str) -> int:
    return int(docker("inspect", "--format", "{{.RestartCount}}", container))


def healthy(container: str) -> None:
    """Waits until a container is."""
    text = "{{.State.Health.Status}}"
    eventually(
        "a healthy firewall",
        30,
        lambda: docker("inspect", "--format", text, container).strip() == "healthy" or None,
    )


def test_a_change_replaces_nothing_else(stack: Stack, first_run: dict[str, Any]) -> None:
    def others() -> dict[str, str]:
        names = ("server", "upstream", "worker", "fork-worker")
        return {name: service(stack, name) for name in names}

    path = stack.folder / ".env"
    original = path.read_text()
    path.write_text(original.replace("HOST_PORTS=", "HOST_PORTS=5432"))
    try:
        stack.make("up")
        before = others()
    finally:
        path.write_text(original)
        stack.make("up")
    assert others() == before


def test_down_leaves_nothing_and_a_machine_that_cannot_have_the_rule_says_so(
    stack: Stack, first_run: dict[str, Any]
) -> None:
    """Without the capability the kernel answers as one that has no packet filter."""
    assert tables(stack) == [f"flows-{stack.port}"]
    docker("kill", service(stack, "firewall"))
    override, setting = stack.folder / "powerless.yml", stack.folder / ".env"
    original = setting.read_text()
    stack.make("down")
    try:
        assert tables(stack) == []
        # As a version without the firewall made it.
        project = f"com.docker.compose.project={stack.project}"
        labels = ("--label", project, "--label", "com.docker.compose.network=flows")
        docker("network", "create", *labels, stack.flows_network)

        override.write_text("services: {firewall: {cap_add: !reset []}}\n")
        files = f"COMPOSE_FILE=docker-compose.yml:{override.name}"
        setting.write_text(re.sub(r"(?m)^COMPOSE_FILE=.*", files, original))
        output = stack.make("up", code=2)
        assert "FAIL  packet filter" in output
        assert "HOST_PORTS=all in .env" in output
        assert service(stack, "worker") == "" or not running(service(stack, "worker"))
        setting.write_text(setting.read_text().replace("HOST_PORTS=", "HOST_PORTS=all"))
        stack.make("up")
        assert "everything is right" in stack.make("status")
        assert tables(stack) == []
    finally:
        setting.write_text(original)
        override.unlink(missing_ok=True)
        stack.make("up")
    text = '{{index .Options "com.docker.network.bridge.name"}}'
    name = docker("network", "inspect", "--format", text, stack.flows_network).strip()
    assert tables(stack) == [name]
    assert "everything is right" in stack.make("status")


def running(container: str) -> bool:
    return docker("inspect", "--format", "{{.State.Running}}", container).strip() == "true"
