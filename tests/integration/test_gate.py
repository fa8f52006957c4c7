"""What somebody with Prefect's login, or in the worker, can get out of the engine: flow runs."""

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from tests.stack import DAILY, Stack, docker, left_behind, settings_of
from tests.unit.gate import create_body
from tests.unit.test_gate import REFUSED

# What a job variable of the base job template may try.
VARIABLES: dict[str, tuple[dict[str, Any], str]] = {
    "another image": ({"image": "postgres:17-trixie"}, "image"),
    "another image, pulled": (
        {"image": "evil.example/x:1", "image_pull_policy": "Always"},
        "image",
    ),
    "the server's image": ({"image": "{project}-server:local"}, "image"),
    "an image by its id": ({"image": "{flow_id}"}, "image"),
    "a login elsewhere": (
        {
            "image": "evil.example/x:1",
            "image_pull_policy": "Always",
            "registry_credentials": {
                "username": "x",
                "password": "x",
                "registry_url": "127.0.0.1:{port}",
            },
        },
        "registry",
    ),
    "the host's root": ({"volumes": ["/:/host"]}, "volumes"),
    "the engine's socket": ({"volumes": ["/var/run/docker.sock:/d.sock"]}, "volumes"),
    "the database's files": ({"volumes": ["{project}_postgres-data:/d"]}, "volumes"),
    "the gate's socket": ({"volumes": ["{project}_gate:/run/gate"]}, "volumes"),
    "a volume over /proc": ({"volumes": ["{project}_data:/proc/x"]}, "Volumes"),
    "the database's network": ({"networks": ["{project}_backend"]}, "network"),
    "the host's network": ({"networks": ["host"]}, "network"),
    "no network, so the host's": (
        {"networks": [], "env": {"PREFECT_API_URL": "http://127.0.0.1/api"}},
        "",
    ),
    "two networks": ({"networks": ["{network}", "{project}_backend"]}, "networks"),
    "more memory": ({"mem_limit": "64g", "memswap_limit": "64g"}, "mem_limit"),
    "swap": ({"memswap_limit": "-1"}, "memswap_limit"),
    "processes without a bound": ({"pids_limit": -1}, "pids_limit"),
    "memory over /sys": ({"tmpfs": {"/sys": ""}}, "tmpfs"),
    "programs of root's in memory": ({"tmpfs": {"/mem": "exec,suid"}}, "tmpfs"),
    "Compose's label": ({"labels": {"com.docker.compose.project": "{project}"}}, "labels"),
    "a volume that Docker mounts into": ({"volumes": ["{project}_data:/etc"]}, "volumes"),
    "memory over programs": ({"tmpfs": {"/bin/x": ""}}, "tmpfs"),
    "another program's label": ({"labels": {"traefik.enable": "true"}}, "labels"),
    "the gate's label": ({"labels": {"prefect-stack.gate": "x"}}, "labels"),
}
# What the base job template itself may be made to say: whoever has the login can change it.
KWARGS: dict[str, dict[str, Any]] = {
    "root": {"user": "0"},
    "capabilities": {"cap_add": ["SYS_ADMIN"]},
    "no seccomp": {"security_opt": ["seccomp=unconfined"]},
    "the host's processes": {"pid_mode": "host"},
    "the host's IPC": {"ipc_mode": "host"},
    "the host's name": {"uts_mode": "host"},
    "the host's users": {"userns_mode": "host"},
    "the host's cgroups": {"cgroupns": "host"},
    "a cgroup": {"cgroup_parent": "/"},
    "devices": {"devices": ["/dev/kmsg:/dev/kmsg:rwm"]},
    "device rules": {"device_cgroup_rules": ["a *:* rwm"]},
    "mounts": {"mounts": [{"Type": "bind", "Source": "/", "Target": "/host"}]},
    "another's volumes": {"volumes_from": ["{project}-postgres-1"]},
    "published ports": {"ports": {"80/tcp": 8099}},
    "hosts": {"extra_hosts": {"server": "10.0.0.1", "host.docker.internal": "host-gateway"}},
    "name servers": {"dns": ["10.0.0.1"]},
    "kernel settings": {"sysctls": {"net.ipv4.ip_forward": "1"}},
    "another runtime": {"runtime": "sysbox-runc"},
    "a restart by the engine": {"restart_policy": {"Name": "always"}},
    "no out-of-memory killer": {"oom_kill_disable": True},
    "real-time priority": {"cpu_rt_runtime": 950000},
    "limits of open files": {"ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 9999999}]},
    "a host name": {"hostname": "server"},
    "groups": {"group_add": ["0"]},
    "a health check": {"healthcheck": {"test": ["CMD", "true"]}},
    "a log elsewhere": {"log_config": {"Type": "syslog", "Config": {}}},
    "a storage option": {"storage_opt": {"size": "1t"}},
}


@pytest.fixture(scope="module")
def running(stack: Stack, first_run: dict[str, Any]) -> Stack:
    return stack


def filled(value: Any, stack: Stack) -> Any:
    """A case with this stack's names in it."""
    image = docker("image", "inspect", "--format", "{{.Id}}", f"{stack.project}-flow:local").strip()
    names = {"project": stack.project, "network": stack.flows_network}
    text = json.dumps(value)
    for key, name in {**names, "flow_id": image, "port": str(stack.port)}.items():
        text = text.replace(f"{{{key}}}", name)
    return json.loads(text)


def assert_crashed(stack: Stack, runs: dict[str, str], named: dict[str, str]) -> None:
    """Each run has crashed without a container, and its log says what wasn't allowed."""
    for case, run in runs.items():
        ended = stack.finished(run, 120)
        assert ended["state_type"] == "CRASHED", case
        assert ended["run_count"] == 0, case
        message = ended["state"]["message"]
        assert "NotAllowed: " in message, f"{case}: {message}"
        assert named[case] in message.split(": expected")[0], f"{case}: {message}"
        stack.cleared(run, 60)
        stack.said(run, message.split("NotAllowed: ")[1][:60])


def test_job_variables_get_nothing_that_isnt_allowed(running: Stack) -> None:
    before = {*made(running)}
    runs = {
        case: running.start(DAILY, filled(variables, running))
        for case, (variables, _) in VARIABLES.items()
    }
    assert_crashed(running, runs, {case: named for case, (_, named) in VARIABLES.items()})
    assert {*made(running)} <= before


def made(stack: Stack) -> list[str]:
    """Every container of this stack's gate."""
    label = f"label=prefect-stack.gate={stack.flows_network}"
    return docker("ps", "--all", "--quiet", "--filter", label).split()


@pytest.fixture
def template(running: Stack) -> Iterator[dict[str, Any]]:
    """The pool's base job template, which is afterwards as it was."""
    original = running.api("GET", "/work_pools/docker-pool")["base_job_template"]
    yield json.loads(json.dumps(original))
    running.api("PATCH", "/work_pools/docker-pool", {"base_job_template": original})


def test_another_base_job_template_gets_no_more(running: Stack, template: dict[str, Any]) -> None:
    """Each of its kwargs is a job variable of its own, so that all are tried at once."""
    configuration = template["job_configuration"]
    kwargs = configuration["container_create_kwargs"]
    variables = template["variables"]["properties"]
    for key in {key for values in KWARGS.values() for key in values}:
        kwargs[key] = f"{{{{ try_{key} }}}}"
        variables[f"try_{key}"] = {}
    configuration["privileged"] = "{{ try_privileged }}"
    variables["try_privileged"] = {"type": "boolean", "default": False}
    plain = {
        "user": "10001:10001",
        "security_opt": ["no-new-privileges:true"],
        "log_config": {
            "Type": "json-file",
            "Config": {"max-size": "10m", "max-file": "3"},
        },
    }
    for key, value in plain.items():
        variables[f"try_{key}"]["default"] = value
    running.api("PATCH", "/work_pools/docker-pool", {"base_job_template": template})
    cases = KWARGS | {"privileged": {"privileged": True}}
    runs = {
        case: running.start(
            DAILY, {f"try_{key}": value for key, value in filled(values, running).items()}
        )
        for case, values in cases.items()
    }
    assert_crashed(running, runs, dict.fromkeys(cases, ""))
    good = running.start(DAILY)
    assert running.finished(good)["state_type"] == "COMPLETED"


# ── Somebody in the worker, with all that it has ──

ASK = """
import http.client, json, socket, sys
def ask(method, path, body=None):
    connection = http.client.HTTPConnection("docker")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect("/run/gate/docker.sock")
    headers = {"Content-Type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()
print(json.dumps([ask(*call) for call in json.load(sys.stdin)]))
"""


def from_worker(stack: Stack, *calls: tuple[Any, ...]) -> list[tuple[int, str]]:
    """What the gate answers a process in the worker's container."""
    command = ["docker", "compose", "exec", "-T", "worker", "python", "-c", ASK]
    done = subprocess.run(
        command, cwd=stack.folder, input=json.dumps(calls), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [(status, text) for status, text in json.loads(done.stdout)]


def body_of(stack: Stack, **host: Any) -> dict[str, Any]:
    """A good request for a container of this stack's."""
    text = json.dumps(create_body(**host)).replace("stack_", f"{stack.project}_")
    text = text.replace("stack-flow:local", f"{stack.project}-flow:local")
    body: dict[str, Any] = json.loads(text)
    body["Labels"]["io.prefect.flow-run-id"] = str(uuid4())
    return body


def test_a_run_can_t_pass_for_another(running: Stack) -> None:
    """Who cancels that one would end this one's container, and let its own go on."""
    other = str(uuid4())
    labels = {"io.prefect.flow-run-id": other, "prefect.io/flow-run-id": other}
    labels |= {"io.prefect.worker-name": "another"}
    in_a_moment = datetime.now(UTC) + timedelta(seconds=15)
    run = running.start(DAILY, job_variables={"labels": labels}, at=in_a_moment)
    container = running.container(run)
    form = '{{index .Config.Labels "io.prefect.worker-name"}}'
    assert docker("inspect", "--format", form, container).startswith("worker-")
    assert running.finished(run)["state_type"] == "COMPLETED"


def test_the_worker_s_own_requests_are_held_to_the_same_rules(running: Stack) -> None:
    """Every case of the gate's own tests, against the real engine."""
    before = {*made(running)}
    calls = [
        (
            "POST",
            "/containers/create",
            json.loads(json.dumps(body).replace("stack_", f"{running.project}_")),
        )
        for body, _ in REFUSED.values()
    ]
    for case, (status, text) in zip(REFUSED, from_worker(running, *calls), strict=True):
        assert status == 403, f"{case}: {text}"
    assert {*made(running)} <= before


def test_others_containers_stay_unseen_and_untouched(running: Stack) -> None:
    """The database's environment, the server's life."""
    ids = {
        service: docker("compose", "-p", running.project, "ps", "-q", "--no-trunc", service).strip()
        for service in ("postgres", "server", "worker", "gate")
    }
    calls = [
        (method, f"/containers/{container}{path}")
        for container in ids.values()
        for method, path in (
            ("GET", "/json"),
            ("GET", "/logs?stdout=1"),
            ("GET", "/archive?path=/"),
            ("POST", "/stop"),
            ("POST", "/kill"),
            ("POST", "/exec"),
            ("DELETE", "?force=1"),
        )
    ]
    answers = from_worker(running, *calls, ("GET", "/containers/json?all=1"), ("GET", "/info"))
    assert {status for status, _ in answers[:-2]} == {403}
    password = settings_of(running.folder / ".env")["POSTGRES_PASSWORD"]
    assert not [text for _, text in answers if password in text or "POSTGRES" in text]
    listed = json.loads(answers[-2][1])  # a run of the schedule's, perhaps
    assert {one["Labels"]["prefect-stack.gate"] for one in listed} <= {running.flows_network}
    assert not {one["Id"] for one in listed} & {*ids.values()}
    assert answers[-1][0] == 403
    for container in ids.values():
        assert docker("inspect", "--format", "{{.State.Running}}", container).strip() == "true"


def test_what_passes_is_made_as_the_policy_says(running: Stack) -> None:
    body = body_of(running, Memory=256 << 20, MemorySwap=256 << 20, PidsLimit=99)
    body["Cmd"] = ["sleep", "60"]
    [(status, text)] = from_worker(running, ("POST", "/containers/create?name=postgres", body))
    assert status == 201, text
    container = json.loads(text)["Id"]
    start, *_ = from_worker(running, ("POST", f"/containers/{container}/start"))
    assert start[0] == 204
    try:
        (facts,) = json.loads(docker("inspect", container))
        host, config = facts["HostConfig"], facts["Config"]
        assert facts["Name"] == "/flow-postgres"
        assert config["User"] == "10001:10001"
        assert config["Image"] == f"{running.project}-flow:local"
        assert list(facts["NetworkSettings"]["Networks"]) == [running.flows_network]
        assert host["Binds"] == [f"{running.project}_data:/data:rw"]
        assert [mount["Name"] for mount in facts["Mounts"]] == [f"{running.project}_data"]
        assert (host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (256 << 20, 256 << 20, 99)
        assert (host["CpuQuota"], host["CpuPeriod"]) == (200_000, 100_000)
        assert host["OomScoreAdj"] == 500
        assert host["ReadonlyRootfs"] is True
        assert host["Init"] is True
        assert host["CapDrop"] == ["ALL"]
        assert not host["CapAdd"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert host["Privileged"] is False
        assert host["NetworkMode"] == running.flows_network
        for space in ("PidMode", "UTSMode", "UsernsMode", "CgroupParent"):
            assert host[space] == "", space
        assert host["IpcMode"] == "private"
        assert not host["Devices"]
        assert not host["PortBindings"]
        assert not host["ExtraHosts"]
        assert host["RestartPolicy"]["Name"] in ("", "no")
        assert host["LogConfig"] == {
            "Type": "json-file",
            "Config": {"max-size": "10m", "max-file": "3"},
        }
        assert config["Labels"]["prefect-stack.gate"] == running.flows_network
        assert config["Labels"]["com.docker.compose.project"] == ""
    finally:
        docker("rm", "--force", container)


FLOOD = """
import socket
connections = []
for number in range(260):
    size = 1_000_000 if number < 60 else 200_000
    one = socket.socket(socket.AF_UNIX)
    one.connect("/run/gate/docker.sock")  # waits for room in the gate's queue
    one.settimeout(2)
    head = f"POST /containers/create HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: {size}\\r\\n\\r\\n"
    try:
        one.sendall(head.encode() + b" " * (size - 10))
    except OSError:
        pass  # refused, or not read any further
    connections.append(one)
print(len(connections))
"""


def test_bodies_that_never_end_dont_bring_the_gate_down(running: Stack) -> None:
    gate = docker("compose", "-p", running.project, "ps", "-q", "gate").strip()
    # Other tests of this stack may have killed it before.
    state = "{{.State.StartedAt}} {{.State.Running}} {{.State.OOMKilled}}"
    before = docker("inspect", "--format", state, gate)
    assert before.endswith(" true false\n")
    done = running.run("docker", "compose", "exec", "-T", "worker", "python", "-c", FLOOD)
    assert done.stdout.strip() == "260", done.stdout
    assert docker("inspect", "--format", state, gate) == before
    assert running.finished(running.start(DAILY))["state_type"] == "COMPLETED"


def test_only_the_gate_has_the_engine_s_socket_and_no_network(running: Stack) -> None:
    rows = docker(
        "ps", "--filter", f"label=com.docker.compose.project={running.project}", "--quiet"
    ).split()
    for row in json.loads(docker("inspect", *rows)):
        service = row["Config"]["Labels"]["com.docker.compose.service"]
        sources = {mount["Source"] for mount in row["Mounts"]}
        names = {mount.get("Name") for mount in row["Mounts"]}
        assert any("docker.sock" in source for source in sources) == (service == "gate"), service
        assert (f"{running.project}_gate" in names) == (service in ("gate", "worker")), service
    assert left_behind(running.project)  # it is this very stack
