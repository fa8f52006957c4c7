"""The gate, with an engine behind it that writes down what reaches it."""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gate.policy import OWN_VOLUMES, Policy
from tests.stack import PROJECT
from tests.unit.gate import (
    IMAGE,
    NETWORK,
    OURS,
    RUN,
    SETTINGS,
    THEIRS,
    VOLUME,
    Client,
    Gate,
    create_body,
    gate,
)

CREATE = "/v1.45/containers/create?name=nimble-otter"
MADE = {
    "Image": IMAGE,
    "Cmd": ["prefect", "flow-run", "execute"],
    "Env": ["PREFECT_API_URL=http://server:4200/api", "X"],
    "User": "10001:10001",
    "Labels": {
        "com.docker.compose.project": "",
        "com.docker.compose.service": "",
        "io.prefect.flow-run-id": RUN,
        "prefect-stack.gate": NETWORK,
    },
    "HostConfig": {
        "NetworkMode": NETWORK,
        "Binds": [f"{VOLUME}:/data:rw"],
        "Memory": 1 << 30,
        "MemorySwap": 1 << 30,
        "PidsLimit": 512,
        "CpuPeriod": 100_000,
        "CpuQuota": 200_000,
        "CpuShares": 512,
        "CgroupParent": "",
        "OomScoreAdj": 500,
        "Tmpfs": {"/tmp": "mode=1777,size=256m"},  # noqa: S108
        "ReadonlyRootfs": True,
        "Init": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true"],
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
    },
    "NetworkingConfig": {"EndpointsConfig": {NETWORK: {}}},
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with gate(tmp_path_factory.mktemp("gate")) as found:
        yield found


@pytest.fixture
def opened(running: Gate) -> Gate:
    running.engine.calls.clear()
    return running


def ask(opened: Gate, body: Any, path: str = CREATE) -> tuple[int, Any]:
    return opened.client.send("POST", path, json.dumps(body).encode())


def test_what_the_worker_asks_for_is_made_by_the_rules(opened: Gate) -> None:
    assert ask(opened, create_body()) == (201, {"Id": OURS, "Warnings": []})
    [call] = opened.engine.calls
    assert (call.method, call.path) == ("POST", "/v1.44/containers/create?name=flow-nimble-otter")
    assert json.loads(call.body) == MADE


def test_what_isnt_asked_for_is_bounded_all_the_same(opened: Gate) -> None:
    body = {"Image": IMAGE, "Labels": {"io.prefect.flow-run-id": RUN}}
    assert ask(opened, body, "/containers/create")[0] == 201
    made = json.loads(opened.engine.calls[0].body)
    expected = MADE["HostConfig"] | {"Binds": []}  # type: ignore[operator]
    assert made["HostConfig"] == expected
    assert made["User"] == "10001:10001"
    assert "Cmd" not in made


def test_a_listed_label_and_a_user_without_a_group(opened: Gate) -> None:
    labels = {"io.prefect.flow-run-id": RUN, "team": "data"}
    assert ask(opened, create_body() | {"Labels": labels, "User": "12345"})[0] == 201
    made = json.loads(opened.engine.calls[0].body)
    assert made["Labels"] == MADE["Labels"] | labels  # type: ignore[operator]
    assert made["User"] == "12345:12345"  # without a group, Docker might give it root's


def top(**changes: Any) -> dict[str, Any]:
    return create_body() | changes


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another image": (top(Image="postgres:17-trixie"), "image"),
    "an image without a tag": (top(Image="history"), "image"),
    "an image by its id": (top(Image="sha256:" + "1" * 64), "image"),
    "no image": (top(Image=None), "image"),
    "root": (top(User="0"), "user"),
    "root's group": (top(User="10001:0"), "user"),
    "root by name": (top(User="root"), "user"),
    "root with zeros": (top(User="00:00"), "user"),
    "a user's number in Arabic": (top(User="١"), "user"),  # noqa: RUF001
    "no flow run": (top(Labels={}), "flow-run-id"),
    "a flow run that is none": (top(Labels={"io.prefect.flow-run-id": "x"}), "flow-run-id"),
    "Compose's labels": (
        top(Labels={"io.prefect.flow-run-id": RUN, "com.docker.compose.project": "x"}),
        "labels",
    ),
    "the gate's label": (
        top(Labels={"io.prefect.flow-run-id": RUN, "prefect-stack.gate": "x"}),
        "labels",
    ),
    "another program's labels": (
        top(Labels={"io.prefect.flow-run-id": RUN, "traefik.enable": "true"}),
        "labels",
    ),
    "Prefect's label, but for a letter": (
        top(Labels={"io.prefect.flow-run-id": RUN, "io.prefectx": "x"}),
        "labels",
    ),
    "a volume of the image's own": (top(Volumes={"/x": {}}), "volumes"),
    "a host name": (top(Hostname="server"), "Hostname"),
    "a domain name": (top(Domainname="x"), "Domainname"),
    "ports": (top(ExposedPorts={"80/tcp": {}}), "ExposedPorts"),
    "a terminal": (top(Tty=True), "Tty"),
    "input": (top(OpenStdin=True), "OpenStdin"),
    "a health check": (top(Healthcheck={"Test": ["CMD", "x"]}), "Healthcheck"),
    "another runtime": (top(Runtime="sysbox"), "Runtime"),
    "a MAC address": (top(MacAddress="02:42:ac:11:00:02"), "MacAddress"),
    "another network": (top(NetworkingConfig={"stack_backend": None}), "network"),
    "two networks": (top(NetworkingConfig={NETWORK: None, "stack_backend": None}), "network"),
    "another name on the network": (
        top(NetworkingConfig={"EndpointsConfig": {NETWORK: {"Aliases": ["server"]}}}),
        "NetworkingConfig",
    ),
    "an unknown field": (top(Surprise=1), "Surprise"),
    "an unknown field that says nothing": (top(Surprise=None), "Surprise"),
    "another spelling": (top(image=IMAGE), "image"),
    "the host's part in another spelling": (top(hostconfig={"Privileged": True}), "hostconfig"),
    "privileged": (create_body(Privileged=True), "HostConfig.Privileged"),
    "privileged, spelled small": (create_body(privileged=True), "HostConfig.privileged"),
    "not privileged, but named": (create_body(Privileged=False), "HostConfig.Privileged"),
    "the host's network": (create_body(NetworkMode="host"), "network"),
    "another container's network": (create_body(NetworkMode=f"container:{THEIRS}"), "network"),
    "the database's network": (create_body(NetworkMode="stack_backend"), "network"),
    "the host's processes": (create_body(PidMode="host"), "HostConfig.PidMode"),
    "the host's IPC": (create_body(IpcMode="host"), "HostConfig.IpcMode"),
    "the host's name": (create_body(UTSMode="host"), "HostConfig.UTSMode"),
    "the host's users": (create_body(UsernsMode="host"), "HostConfig.UsernsMode"),
    "the host's cgroups": (create_body(CgroupnsMode="host"), "HostConfig.CgroupnsMode"),
    "a cgroup": (create_body(CgroupParent="/"), "HostConfig.CgroupParent"),
    "a folder of the host's": (create_body(Binds=["/:/host"]), "volumes"),
    "the engine's socket": (create_body(Binds=["/var/run/docker.sock:/d"]), "volumes"),
    "a relative folder": (create_body(Binds=["./x:/x"]), "volumes"),
    "another volume": (create_body(Binds=["stack_postgres-data:/d"]), "volumes"),
    "a volume with more options": (create_body(Binds=[f"{VOLUME}:/data:z"]), "volumes"),
    "a volume over the system": (create_body(Binds=[f"{VOLUME}:/proc/x"]), "volumes"),
    "a volume where Docker mounts, too": (create_body(Binds=[f"{VOLUME}:/etc"]), "volumes"),
    "a volume where a link may be": (create_body(Binds=[f"{VOLUME}:/usr/bin"]), "volumes"),
    "memory where a link may be": (create_body(Tmpfs={"/bin/b": ""}), "tmpfs"),
    "a volume up and away": (create_body(Binds=[f"{VOLUME}:/data/../proc"]), "volumes"),
    "a volume twice": (create_body(Binds=[f"{VOLUME}:/a", f"{VOLUME}:/a"]), "volumes"),
    "a volume within a volume": (create_body(Binds=[f"{VOLUME}:/a", "cache:/a/b"]), "volumes"),
    "memory within a volume": (create_body(Tmpfs={"/data/x": ""}), "volumes"),
    "a volume within memory": (create_body(Binds=[f"{VOLUME}:/tmp/data"]), "volumes"),
    "mounts": (
        create_body(Mounts=[{"Type": "bind", "Source": "/", "Target": "/h"}]),
        "HostConfig.Mounts",
    ),
    "another's volumes": (create_body(VolumesFrom=[THEIRS]), "HostConfig.VolumesFrom"),
    "a volume driver": (create_body(VolumeDriver="x"), "HostConfig.VolumeDriver"),
    "capabilities": (create_body(CapAdd=["SYS_ADMIN"]), "HostConfig.CapAdd"),
    "fewer capabilities dropped": (create_body(CapDrop=["NET_RAW"]), "CapDrop"),
    "no seccomp": (create_body(SecurityOpt=["seccomp=unconfined"]), "SecurityOpt"),
    "no AppArmor": (create_body(SecurityOpt=["apparmor=unconfined"]), "SecurityOpt"),
    "devices": (create_body(Devices=[{"PathOnHost": "/dev/sda"}]), "HostConfig.Devices"),
    "device rules": (create_body(DeviceCgroupRules=["a *:* rwm"]), "DeviceCgroupRules"),
    "a graphics card": (create_body(DeviceRequests=[{"Count": -1}]), "DeviceRequests"),
    "kernel settings": (create_body(Sysctls={"kernel.shmmax": "1"}), "HostConfig.Sysctls"),
    "unmasked paths": (create_body(MaskedPaths=[]), "HostConfig.MaskedPaths"),
    "writable kernel paths": (create_body(ReadonlyPaths=[]), "HostConfig.ReadonlyPaths"),
    "published ports": (create_body(PortBindings={"80/tcp": [{}]}), "PortBindings"),
    "all ports": (create_body(PublishAllPorts=True), "PublishAllPorts"),
    "hosts": (create_body(ExtraHosts=["server:10.0.0.1"]), "HostConfig.ExtraHosts"),
    "links": (create_body(Links=["postgres:db"]), "HostConfig.Links"),
    "name servers": (create_body(Dns=["10.0.0.1"]), "HostConfig.Dns"),
    "more memory": (create_body(Memory=5 << 30), "mem_limit"),
    "memory without a bound": (create_body(Memory=0), "mem_limit"),
    "memory as text": (create_body(Memory="1g"), "mem_limit"),
    "memory as yes": (create_body(Memory=True), "mem_limit"),
    "swap": (create_body(MemorySwap=2 << 30), "memswap_limit"),
    "swap without a bound": (create_body(MemorySwap=-1), "memswap_limit"),
    "no out-of-memory killer": (create_body(OomKillDisable=True), "OomKillDisable"),
    "a better out-of-memory score": (create_body(OomScoreAdj=-1000), "OomScoreAdj"),
    "processes without a bound": (create_body(PidsLimit=-1), "pids_limit"),
    "more CPU": (create_body(NanoCpus=10**11), "HostConfig.NanoCpus"),
    "real time": (create_body(CpuRealtimeRuntime=1), "CpuRealtimeRuntime"),
    "limits of open files": (create_body(Ulimits=[{"Name": "nofile"}]), "HostConfig.Ulimits"),
    "removal by the engine": (create_body(AutoRemove=True), "HostConfig.AutoRemove"),
    "a restart by the engine": (create_body(RestartPolicy={"Name": "always"}), "RestartPolicy"),
    "another log driver": (create_body(LogConfig={"Type": "syslog"}), "LogConfig"),
    "a log without a bound": (create_body(LogConfig={"Type": "json-file"}), "LogConfig"),
    "memory over the kernel's files": (create_body(Tmpfs={"/proc/sys": ""}), "tmpfs"),
    "programs of root's in memory": (create_body(Tmpfs={"/mem": "suid,exec"}), "tmpfs"),
    "an isolation": (create_body(Isolation="process"), "HostConfig.Isolation"),
    "shared memory": (create_body(ShmSize=1 << 40), "HostConfig.ShmSize"),
    "a storage option": (create_body(StorageOpt={"size": "1t"}), "HostConfig.StorageOpt"),
    "groups": (create_body(GroupAdd=["0"]), "HostConfig.GroupAdd"),
    "a file for its id": (create_body(ContainerIDFile="/etc/x"), "ContainerIDFile"),
    "a list for an object": (top(HostConfig=[1]), "HostConfig"),
    "a number for a list": (top(Cmd=1), "Cmd"),
    "an end of text in a command": (top(Cmd=["a\0b"]), "Cmd"),
    "a variable without a name": (top(Env=["=x"]), "Env"),
}


def test_a_refusal_of_memory_names_the_setting(opened: Gate) -> None:
    status, said = ask(opened, create_body(Memory=5 << 30))
    assert status == 403
    assert "bytes from 6291456 to 4294967296 (FLOW_MAX_MEMORY)" in said["message"]


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(opened: Gate, case: str) -> None:
    body, named = REFUSED[case]
    status, said = ask(opened, body)
    assert status == 403
    assert named in said["message"].split(": expected")[0]
    assert opened.engine.calls == []
    assert named in opened.log.read_text()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"NaN",
        b'{"Image": NaN}',
        b"\xef\xbb\xbf{}",
        b'{"Image": "\xff"}',
        b'{"Image": "\\ud800"}',
        b'{"Image": "stack-flow:local", "Image": "evil:1"}',
        b'{"HostConfig": {"Memory": 1073741824, "Memory": 0}}',
        b"[" * 100_000,
        b'{"Image": ' + b"9" * 5000 + b"}",
        b'{"Image": "' + b"x" * 300_000 + b'"}',
        b'{"x": "' + b"x" * 2_000_000 + b'"}',
    ],
    ids=lambda body: repr(body[:30]),
)
def test_what_is_no_request(opened: Gate, body: bytes) -> None:
    status, said = opened.client.send("POST", CREATE, body)
    assert status in (403, 413), said
    assert said["message"]
    assert opened.engine.calls == []


CHUNKED = b"2\r\n{}\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /containers/create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        + CHUNKED,
        b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED,
        b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 2, 2\r\n\r\n{}",
        b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\n"
        b"Content-Length: 2\r\n\r\n{}",
        b"POST /containers/create HTTP/1.1\r\nHost: x\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n"
        b"Content-Length: 2\r\n\r\n{}",
        b"GET /version HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        b"\x16\x03\x01 nonsense\r\n\r\n",
        b"GET http://x/version HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=lambda request: repr(request[40:75]),
)
def test_what_is_no_http_for_the_gate(opened: Gate, request_: bytes) -> None:
    client = Client(opened.log.parent / "gate")
    status, _ = client.raw(request_)
    client.close()
    assert status in (400, 403)
    assert opened.engine.calls == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/info"),
        ("GET", "/events"),
        ("GET", "/containers/%61/json"),
        ("GET", f"/containers/{OURS}/../{THEIRS}/json"),
        ("GET", f"//containers/{OURS}/json"),
        ("GET", f"/containers/{OURS}/json/"),
        ("GET", f"/containers/{OURS}%2fjson"),
        ("GET", f"/containers/{OURS[:12]}/json"),
        ("GET", f"/containers/{OURS}/archive?path=/"),
        ("GET", f"/containers/{OURS}/export"),
        ("GET", f"/containers/{OURS}/top"),
        ("GET", f"/v2/containers/{OURS}/json"),
        ("GET", f"/v1.45/v1.45/containers/{OURS}/json"),
        ("GET", '/containers/json?filters={"label":["x"]}'),
        ("GET", '/containers/json?filters={"status":["running"]}'),
        ("GET", "/containers/json?all=1&all=0"),
        ("GET", "/containers/json?before=x"),
        ("POST", f"/containers/{OURS}/exec"),
        ("POST", f"/containers/{OURS}/attach"),
        ("POST", f"/containers/{OURS}/update"),
        ("POST", f"/containers/{OURS}/rename?name=server"),
        ("POST", f"/containers/{OURS}/restart"),
        ("PUT", f"/containers/{OURS}/archive?path=/"),
        ("POST", f"/containers/{OURS}/kill?signal=x%20y"),
        ("DELETE", f"/containers/{OURS}?link=1"),
        ("POST", "/containers/prune"),
        ("POST", "/build"),
        ("POST", "/commit"),
        ("GET", "/images/json"),
        ("GET", "/images/postgres:17-trixie/json"),
        ("GET", "/images/stack-flow:local/history"),
        ("DELETE", "/images/stack-flow:local"),
        ("POST", "/images/create?fromImage=evil&tag=1"),
        ("POST", "/images/create?fromImage=history"),
        ("POST", "/images/create?fromSrc=-&repo=history&tag=1"),
        ("POST", "/images/load"),
        ("GET", "/networks/stack_flows"),
        ("POST", "/networks/stack_backend/connect"),
        ("POST", "/networks/create"),
        ("GET", "/volumes"),
        ("POST", "/volumes/create"),
        ("GET", "/secrets"),
        ("POST", "/swarm/init"),
        ("GET", "/plugins"),
        ("POST", "/session"),
        ("HEAD", "/_ping"),
        ("OPTIONS", "*"),
    ],
)
def test_what_else_an_engine_could_be_asked(opened: Gate, method: str, path: str) -> None:
    status, _ = opened.client.send(method, path)
    assert status in (400, 403)
    assert opened.engine.calls == []


def test_a_body_that_is_too_large_isnt_waited_for(opened: Gate) -> None:
    client = Client(opened.log.parent / "gate")
    head = b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    status, said = client.raw(head % 1_000_000 + b"{")
    client.close()
    assert status == 403
    assert "262144" in said["message"]
    assert opened.engine.calls == []


def test_another_stacks_container_is_nobodys_here(opened: Gate) -> None:
    for method, path in (
        ("GET", "/json"),
        ("GET", "/logs?stdout=1"),
        ("POST", "/start"),
        ("POST", "/stop?t=1"),
        ("POST", "/kill"),
        ("POST", "/wait"),
        ("DELETE", ""),
    ):
        status, said = opened.client.send(method, f"/v1.45/containers/{THEIRS}{path}")
        assert status == 403
        assert "container" in said["message"]
    assert {(call.method, call.path) for call in opened.engine.calls} == {
        ("GET", f"/v1.44/containers/{THEIRS}/json")  # the look at whose it is
    }


def test_its_own_containers_can_be_listed_read_and_ended(opened: Gate) -> None:
    listing = "/v1.45/containers/json?limit=-1&all=1&size=0&trunc_cmd=0&filters="
    label = "io.prefect.flow-run-id"
    assert opened.client.send("GET", f'{listing}{{"label":["{label}"]}}') == (200, [])
    for method, path in (
        ("POST", f"/containers/{OURS}/start"),
        ("GET", f"/containers/{OURS}/json"),
        ("GET", f"/containers/{OURS}/logs?stderr=1&stdout=1&timestamps=0&follow=1&tail=all"),
        ("POST", f"/containers/{OURS}/kill?signal=SIGUSR1"),
        ("POST", f"/containers/{OURS}/stop?t=30"),
        ("DELETE", f"/containers/{OURS}?v=True&link=False&force=False"),
        ("GET", "/images/stack-flow:local/json"),
        ("GET", "/images/history:7/json"),
        ("POST", "/images/create?tag=2&fromImage=registry.example:5000/team/etl"),
    ):
        assert opened.client.send(method, f"/v1.45{path}")[0] == 200
        last = opened.engine.calls[-1]
        assert (last.method, last.path.split("?")[0]) == (method, f"/v1.44{path}".split("?")[0])
    listed = opened.engine.calls[0].path
    assert f"prefect-stack.gate%3D{NETWORK}" in listed.replace("%3d", "%3D").replace("=", "%3D")


def test_what_was_built_here_is_never_pulled(opened: Gate) -> None:
    """A registry may have another image of that name."""
    name, tag = IMAGE.split(":")
    status, said = opened.client.send("POST", f"/images/create?fromImage={name}&tag={tag}")
    assert status == 403
    assert "built here" in said["message"]
    assert [call.method for call in opened.engine.calls] == ["GET"]


def test_a_wait_lasts_as_long_as_the_container(opened: Gate) -> None:
    """Others are served meanwhile."""
    opened.engine.release.clear()
    found: list[Any] = []
    waiting = Client(opened.log.parent / "gate")
    thread = threading.Thread(
        target=lambda: found.append(waiting.send("POST", f"/containers/{OURS}/wait"))
    )
    thread.start()
    assert opened.client.send("GET", "/_ping")[0] == 200
    assert found == []
    opened.engine.release.set()
    thread.join(10)
    waiting.close()
    assert found == [(200, {"StatusCode": 0})]


def test_a_login_only_for_the_registries_of_listed_images(opened: Gate) -> None:
    login = {"username": "me", "password": "pa55w0rd", "serveraddress": "evil.example"}
    assert opened.client.send("POST", "/auth", json.dumps(login).encode())[0] == 403
    assert opened.engine.calls == []
    login["serveraddress"] = "registry.example:5000"
    assert opened.client.send("POST", "/auth", json.dumps(login | {"x": 1}).encode())[0] == 200
    assert json.loads(opened.engine.calls[0].body) == login
    assert "pa55w0rd" not in opened.log.read_text()


def test_without_an_engine_it_says_so(tmp_path: Path) -> None:
    with gate(tmp_path) as opened:
        (tmp_path / "engine").unlink()
        status, said = opened.client.send("GET", "/version")
    assert status == 502
    assert "engine doesn't answer" in said["message"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("FLOW_IMAGES", "Not An Image!"),
        ("FLOW_VOLUMES", "/etc"),
        ("FLOW_VOLUMES", "cache stack_postgres-data"),
        ("FLOW_MAX_MEMORY", "lots"),
        ("FLOW_CPUS", "0"),
        ("FLOW_CPUS", "nan"),
    ],
)
def test_settings_that_make_no_sense(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=key):
        Policy.read(SETTINGS | {key: value})


def test_every_volume_but_the_flows_own_is_closed_to_them() -> None:
    names = set()
    for file in ("docker-compose.yml", "proxy/tls.yml"):
        section = (PROJECT / file).read_text().split("\nvolumes:\n")[1].split("\n\n")[0]
        names |= {*re.findall(r"(?m)^  ([\w-]+):", section)}
    assert names - {"data"} == {*OWN_VOLUMES}
