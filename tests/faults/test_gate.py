"""Whatever is sent to the gate, nothing outside the policy passes it.

The rules are told here once more, in another way than the gate's own.
"""

import json
import os
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.unit.gate import IMAGE, NETWORK, OURS, THEIRS, VOLUME, Call, create_body, gate

EXAMPLES = int(os.environ.get("FUZZ", "2500"))  # of bodies and of paths, each
MAX_MEMORY = 64 << 20  # of the gate's container (docker-compose.yml)

# ── What may reach the engine ──

LOOK = r"/v1\.44/containers/[0-9a-f]{64}/json"
READS = rf"/v1\.44/(_ping|version|containers/json\?.*|containers/{OURS}/logs(\?[\w=&.]*)?)"
WRITES = rf"/v1\.44/containers/{OURS}/(start|wait|stop|kill)(\?(condition|t|signal)=[\w-]+)?"
IMAGES = (
    r"/v1\.44/images/(stack-flow:local|history[:@][\w.:-]+|registry\.example:5000/team/etl:2)/json"
)
PULLS = (
    r"/v1\.44/images/create\?"
    r"(fromImage=(history|[a-z./:0-9%A-F]*team/etl)|tag=[\w.:%-]+|&)+"
)
HOST = {
    "NetworkMode": NETWORK,
    "CpuPeriod": 100_000,
    "CpuQuota": 200_000,
    "CpuShares": 512,
    "CgroupParent": "",
    "OomScoreAdj": 500,
    "ReadonlyRootfs": True,
    "Init": True,
    "CapDrop": ["ALL"],
    "SecurityOpt": ["no-new-privileges:true"],
    "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
}
BOUNDED = {"Binds", "Memory", "MemorySwap", "PidsLimit", "Tmpfs"}
SYSTEM = re.compile(
    r"/(proc|sys|dev)(/|$)|^/(boot|etc|root|usr|s?bin|lib\w*|run|var)(/|$)|\.\.|//|^[^/]"
)


def assert_within(call: Call) -> None:
    """Is this a call that a flow container needs, and no more?"""
    if call.method == "POST" and call.path.startswith("/v1.44/containers/create"):
        assert re.fullmatch(r"/v1\.44/containers/create(\?name=flow-[\w.-]+)?", call.path, re.A)
        assert_bounded(json.loads(call.body))
    elif call.method == "GET" and re.fullmatch(LOOK, call.path, re.A):
        pass  # the look at whose it is
    elif call.method == "GET":
        assert re.fullmatch(f"{READS}|{IMAGES}", call.path, re.A), call
        if "/containers/json" in call.path:
            assert "prefect-stack.gate%3D" in call.path.replace("%3d", "%3D").replace(
                f"gate={NETWORK}", f"gate%3D{NETWORK}"
            )
    elif call.method == "DELETE":
        assert re.fullmatch(rf"/v1\.44/containers/{OURS}(\?[\w=&]*)?", call.path, re.A), call
    else:
        assert call.method == "POST"
        assert re.fullmatch(f"{WRITES}|{PULLS}|/v1.44/auth", call.path, re.A), call


def assert_bounded(body: dict[str, Any]) -> None:
    """Is this the body of a flow container?"""
    known = {"Image", "Cmd", "Entrypoint", "Env", "WorkingDir", "User", "Labels"}
    assert body.keys() <= known | {"HostConfig", "NetworkingConfig"}
    name, _, tag = body["Image"].rpartition(":")
    assert (
        body["Image"] == IMAGE
        or (name.split("@")[0].split(":")[0] == "history" and tag)
        or (body["Image"].endswith("/team/etl:2"))
    )
    user, _, group = body["User"].partition(":")
    assert int(user) > 0 and (not group or int(group) > 0)
    assert body["Labels"].pop("prefect-stack.gate") == NETWORK
    for part in ("project", "service"):
        assert body["Labels"].pop(f"com.docker.compose.{part}") == ""
    assert not [
        key for key in body["Labels"] if not key.startswith("io.prefect.") and key != "team"
    ]
    assert body["NetworkingConfig"] == {"EndpointsConfig": {NETWORK: {}}}
    host = body["HostConfig"]
    assert {key: value for key, value in host.items() if key not in BOUNDED} == HOST
    assert host.keys() == HOST.keys() | BOUNDED
    assert type(host["Memory"]) is int and 0 < host["Memory"] <= 4 << 30
    assert host["MemorySwap"] == host["Memory"]
    assert type(host["PidsLimit"]) is int and 0 < host["PidsLimit"] <= 4096
    for bind in host["Binds"]:
        volume, path, mode = bind.split(":")
        assert volume in (VOLUME, "cache")
        assert not SYSTEM.search(path)
        assert mode in ("ro", "rw")
    targets = [bind.split(":")[1] for bind in host["Binds"]] + [*host["Tmpfs"]]
    assert not [
        (one, other)
        for number, one in enumerate(targets)
        for place, other in enumerate(targets)
        if place != number and (one + "/").startswith(other + "/")
    ]
    for path, options in host["Tmpfs"].items():
        assert not SYSTEM.search(path)
        assert not {"suid", "dev", "exec"} & {*options.split(",")}


# ── What is sent ──

KEYS = """Image Cmd Entrypoint Env WorkingDir User Labels Volumes NetworkingConfig HostConfig Tty
Hostname Domainname ExposedPorts Healthcheck Runtime MacAddress NetworkMode Binds Memory MemorySwap
PidsLimit Tmpfs ReadonlyRootfs Init CapDrop SecurityOpt LogConfig Privileged CapAdd PidMode IpcMode
UTSMode UsernsMode CgroupnsMode CgroupParent Mounts VolumesFrom VolumeDriver Devices DeviceRequests
Sysctls MaskedPaths ReadonlyPaths PortBindings PublishAllPorts ExtraHosts Links Dns GroupAdd
RestartPolicy AutoRemove OomScoreAdj OomKillDisable Ulimits ShmSize StorageOpt Isolation NanoCpus
CpuQuota CpuShares EndpointsConfig Aliases stack_flows stack_backend /data /proc /etc
io.prefect.flow-run-id com.docker.compose.project prefect-stack.gate team traefik.enable
Type Config Source Target
""".split()  # noqa: SIM905
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 1.5, 2**31, 2**63, 10**40, -(2**70), "", "0", "0:0", "root",
    "1:0", "10001", "host", "container:x", "/:/host", "/var/run/docker.sock:/d",
    f"{VOLUME}:/data:ro", f"{VOLUME}:/proc", f"{VOLUME}:/a/../proc",
    f"{VOLUME}:/etc", f"{VOLUME}:/usr/lib/x", "stack_postgres-data:/d",
    "cache:/c", "ALL", "SYS_ADMIN", "seccomp=unconfined", "evil:1", "history", "history:1",
    "history:1@sha256:" + "a" * 64, IMAGE, IMAGE.upper(), f"{IMAGE}\n", f" {IMAGE}", "mode=1777",
    "suid,exec", NETWORK, "stack_backend", "server", "..", "\0", "\u202e", "\u212a", "\u017f",
    "\U0001f600", [], {}, [[]], [{}], ["x"], {"x": "y"}, {"/": {}}, {"/data": {}},
    ["ALL", "NET_RAW"], [None], {"Type": "bind", "Source": "/"},
]  # fmt: skip
SPELLINGS = (
    str,
    str.lower,
    str.upper,
    str.title,
    str.swapcase,
    lambda key: key.replace("s", "\u017f"),
)
keys = st.builds(
    lambda key, spell: spell(key), st.sampled_from(KEYS), st.sampled_from(SPELLINGS)
) | st.sampled_from(KEYS)
a_value = st.sampled_from(VALUES).map(deepcopy)  # what becomes a part of a body is changed later
values = a_value | st.recursive(
    a_value,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=5,
)
ALLOWED: list[tuple[str, str, Any]] = [
    ("", "Cmd", ["sleep", "1"]), ("", "Env", ["A=b", "C"]), ("", "User", "12345"),
    ("", "WorkingDir", "/srv"), ("", "Image", "history:1"), ("HostConfig", "PidsLimit", 9),
    ("HostConfig", "Memory", 64 << 20), ("HostConfig", "Tmpfs", {"/mem": "size=1m"}),
    ("HostConfig", "Binds", [f"{VOLUME}:/data", "cache:/c:ro"]), ("Labels", "team", "x"),
]  # fmt: skip
DOUBLE = "\x01"  # becomes one more of the key before it


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A body that is right, but for some changes to its values, keys, text or bytes."""
    body = create_body()
    for _ in range(draw(st.integers(0, 3))):
        places = [body, *(body.get(key) for key in ("HostConfig", "Labels", "NetworkingConfig"))]
        place = draw(st.sampled_from([one for one in places if isinstance(one, dict)]))
        known = [key for key in place if key != "HostConfig"]
        match draw(st.integers(0, 6)):
            case 6:  # what is allowed, so that much passes
                owner, key, value = draw(st.sampled_from(ALLOWED).map(deepcopy))
                holder = body.get(owner) if owner else body
                if isinstance(holder, dict):  # nothing else has taken its place
                    holder[key] = value
            case 0 if known:
                place[draw(st.sampled_from(known))] = draw(values)
            case 1 if known:
                old = draw(st.sampled_from(known))
                place[draw(st.sampled_from(SPELLINGS))(old)] = place.pop(old)
            case 2 if known:
                place[draw(st.sampled_from(known)) + DOUBLE] = draw(values)
            case 3 if known:
                place.pop(draw(st.sampled_from(known)))
            case _:
                place[draw(keys)] = draw(values)
    text = json.dumps(body, ensure_ascii=draw(st.booleans())).replace("\\u0001", "")
    text = text.replace(DOUBLE, "")
    data = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(data)))
        piece = draw(
            st.binary(max_size=4) | st.sampled_from([b'"', b"}", b"\\u0000", b",", b"\xc0\xaf"])
        )
        data = data[:at] + piece + data[at + draw(st.integers(0, 4)) :]
    return data


PIECES = [
    "/", "//", "/v1.44", "/v1.45", "/v1.24", "/v999.1", "/containers", "/containers/", "/json",
    "/create", OURS, THEIRS, OURS[:12], "server", "/start", "/stop", "/kill", "/wait", "/logs",
    "/exec", "/attach", "/archive", "/images/", "/images/create", "/build", "/auth", "/version",
    "/_ping", "/info", "/events", "/volumes", "/networks", "/..", "/.", "%2e%2e", "%2f", "%00",
    "%25", "%C0%AF", "\\", ";", "#", "?", "&", "=", "all=1", "t=1", "signal=KILL", "signal=9",
    "name=server", "name=flow-x", "v=1", "link=1", "force=1", "follow=1", "stdout=1",
    "fromImage=history", "fromImage=evil", "tag=1", "fromSrc=-", "repo=x",
    'filters={"label":["io.prefect.flow-run-id"]}', 'filters={"label":["x"]}', "filters={}",
    "stack-flow:local", "history:1", "postgres:17-trixie", "\xe9", "\u212a",
]  # fmt: skip
METHODS = ["GET", "POST", "DELETE", "PUT", "HEAD", "PATCH", "OPTIONS", "get"]
NEEDED = [
    ("GET", "/_ping"), ("GET", "/version"), ("GET", "/containers/json"),
    ("GET", f"/containers/{OURS}/json"), ("GET", f"/containers/{OURS}/logs"),
    ("POST", f"/containers/{OURS}/start"), ("POST", f"/containers/{OURS}/wait"),
    ("POST", f"/containers/{OURS}/stop?t=1"), ("POST", f"/containers/{OURS}/kill?signal=SIGTERM"),
    ("DELETE", f"/containers/{OURS}"), ("GET", f"/images/{IMAGE}/json"),
    ("POST", "/images/create?fromImage=history&tag=1"), ("POST", f"/containers/{THEIRS}/stop"),
    ("POST", f"/containers/{OURS[:12] + THEIRS[12:]}/stop"),
]  # fmt: skip


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, str]:
    """Method and path: right, but for some pieces in the wrong place; or nothing but pieces."""
    method, path = draw(st.sampled_from([*NEEDED, ("GET", "")]))
    method = draw(st.sampled_from([method] * len(METHODS) + METHODS))
    for _ in range(draw(st.integers(0, 3) if path else st.integers(1, 7))):
        at = draw(st.integers(0, len(path)) | st.just(len(path)))
        piece = draw(st.sampled_from(PIECES))
        path = path[:at] + piece + path[at + draw(st.sampled_from([0, 0, len(piece)])) :]
    return method, path or "/"


FAST = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.timeout(1800)
def test_nothing_outside_the_policy_passes(tmp_path: Path) -> None:
    """Bodies, names and paths; the gate lives on, in its memory."""
    sent = {"made": 0, "passed": 0, "refused": 0}
    with gate(tmp_path) as opened:
        client, reached = opened.client, opened.engine.calls

        def judge(status: int) -> None:
            assert status < 500, opened.log.read_text()[-2000:]
            for call in reached:
                assert_within(call)
                if re.fullmatch(LOOK, call.path, re.A) and OURS not in call.path:
                    # What the gate itself found out, and no one else is told.
                    assert (status, len(reached)) == (403, 1)
            sent["made"] += any("/create" in call.path for call in reached)
            sent["passed" if reached else "refused"] += 1
            reached.clear()

        @FAST
        @given(bodies(), st.sampled_from(["", "?name=otter", "?name=server&name=x", "?name=a/b"]))
        def create(body: bytes, query: str) -> None:
            judge(client.send("POST", f"/v1.45/containers/create{query}", body)[0])

        @FAST
        @given(calls(), st.sampled_from([None, b"", b"{}"]))
        def ask(call: tuple[str, str], body: bytes | None) -> None:
            judge(client.send(call[0], call[1].encode("utf-8"), body)[0])

        create()
        ask()
        judge(client.send("POST", "/containers/create", json.dumps(create_body()).encode())[0])
        assert opened.memory < MAX_MEMORY
        print(f"{sent}, the gate's memory at most {opened.memory >> 20} MiB")
    assert sent["made"] > EXAMPLES / 20
    assert sent["refused"] > EXAMPLES
