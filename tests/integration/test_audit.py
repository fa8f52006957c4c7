"""`make audit`: what runs passes, and each way to loosen it is found. `make sbom`. Labels."""

import base64
import contextlib
import json
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from ops.audit import LABELS
from tests.advisories import advisory_database
from tests.stack import DAILY, PROJECT, Stack, docker, eventually, settings_of

SOCKET = "/var/run/docker.sock:/var/run/docker.sock"
OURS = ("server", "flow", "worker", "upstream", "gate", "firewall")  # images
Broken = set[tuple[str, str]]  # a rule's number, who breaks it

# What `docker create` is given for a container that breaks no rule.
GOOD: dict[str, Any] = {
    "user": "10001:10001",
    "cap-drop": "ALL",
    "security-opt": "no-new-privileges:true",
    "read-only": True,
    "network": "{project}_flows",
    "memory": "64m",
    "cpu-shares": 512,
    "pids-limit": 64,
    "restart": "unless-stopped",
    "health-cmd": "true",
    "log-driver": "json-file",
    "log-opt": ["max-size=1m", "max-file=1"],
}
NO_NEW = "no-new-privileges:true"
BOUND = (
    "type=volume,source={project}-loose-bound,destination=/h,volume-nocopy"
    ",volume-opt=type=none,volume-opt=o=bind,volume-opt=device=/etc"
)
# A name, its service ("": a flow run's), what is different, and the rules that it breaks.
LOOSE: list[tuple[str, str, dict[str, Any], list[str]]] = [
    ("good", "x", {}, []),
    ("good-backup", "backup", {"user": "0", "cap-add": ["CHOWN", "DAC_OVERRIDE"]}, []),
    ("good-backup-folders", "backup", {"volume": ["{folder}:/p:ro", "{folder}/backups:/b"]}, []),
    (
        "good-firewall",
        "firewall",
        {"user": "0", "cap-add": "NET_ADMIN", "network": "host"},
        [],
    ),
    (
        "all-ports",  # OWASP 5, of the whole
        "firewall",
        {"user": "0", "cap-add": "NET_ADMIN", "network": "host", "env": "HOST_PORTS=all"},
        [],
    ),
    ("good-gate", "gate", {"volume": SOCKET, "network": "none"}, []),
    ("good-proxy", "proxy", {"publish": "0.0.0.0:443:8000"}, []),
    ("good-one-shot", "migrate", {"restart": "no", "no-healthcheck": True, "health-cmd": None}, []),
    ("good-secret", "server", {"volume": "{folder}/.secrets/encryption_key:/k:ro"}, []),
    ("good-volume", "worker", {"volume": "{project}_gate:/run/gate"}, []),
    ("good-memory", "x", {"mount": "type=tmpfs,destination=/m"}, []),
    ("good-flow", "", {"restart": "no", "env": "PREFECT_API_AUTH_STRING={login}"}, []),
    ("good-flow-volume", "", {"restart": "no", "volume": "{project}-full:/f"}, []),
    ("root", "x", {"user": "0"}, ["CIS 4.1"]),
    ("root-by-name", "x", {"user": "root:10001"}, ["CIS 4.1"]),
    ("undropped", "x", {"cap-drop": None}, ["CIS 5.4"]),
    ("capability", "x", {"cap-add": "SYS_ADMIN"}, ["CIS 5.4"]),
    ("capability-of-backup", "backup", {"cap-add": ["CHOWN", "SYS_PTRACE"]}, ["CIS 5.4"]),
    ("privileged", "x", {"privileged": True}, ["CIS 5.5"]),
    ("new-privileges", "x", {"security-opt": None}, ["CIS 5.26"]),
    ("no-seccomp", "x", {"security-opt": [NO_NEW, "seccomp=unconfined"]}, ["CIS 5.22"]),
    ("no-apparmor", "x", {"security-opt": [NO_NEW, "apparmor=unconfined"]}, ["CIS 5.22"]),
    ("no-selinux", "x", {"security-opt": [NO_NEW, "label=disable"]}, ["CIS 5.22"]),
    ("unmasked", "x", {"security-opt": [NO_NEW, "systempaths=unconfined"]}, ["CIS 5.22"]),
    ("writable", "x", {"read-only": None}, ["CIS 5.13"]),
    ("host-network", "x", {"network": "host"}, ["CIS 5.10"]),
    ("host-pid", "x", {"pid": "host"}, ["CIS 5.16"]),
    ("host-ipc", "x", {"ipc": "host"}, ["CIS 5.17"]),
    ("host-uts", "x", {"uts": "host"}, ["CIS 5.21"]),
    ("host-users", "x", {"userns": "host"}, ["CIS 5.31"]),
    ("default-bridge", "x", {"network": "bridge"}, ["CIS 5.30"]),
    ("by-the-database", "worker", {"network": "{project}_backend"}, ["OWASP 5"]),
    ("device", "x", {"device": "/dev/null:/dev/host"}, ["CIS 5.18"]),
    ("socket", "worker", {"volume": SOCKET}, ["CIS 5.32"]),
    ("socket-elsewhere", "x", {"volume": "/var/run/docker.sock:/tmp/x:ro"}, ["CIS 5.32"]),
    ("host-folder", "x", {"volume": "/etc:/host:ro"}, ["CIS 5.6"]),
    ("folder-of-the-socket", "x", {"volume": "/var/run:/host"}, ["CIS 5.6"]),
    ("env-file", "x", {"volume": "{folder}/.env:/env:ro"}, ["CIS 5.6"]),
    ("secret", "x", {"volume": "{folder}/.secrets/encryption_key:/k:ro"}, ["CIS 5.6"]),
    ("foreign-secret", "worker", {"volume": "{folder}/.secrets/encryption_key:/k"}, ["CIS 5.6"]),
    ("backups", "upstream", {"volume": "{folder}/backups:/b:ro"}, ["CIS 5.6"]),
    ("project", "x", {"volume": "{folder}:/project:ro"}, ["CIS 5.6"]),
    ("flows", "x", {"volume": "{folder}/flows:/flows:ro"}, ["CIS 5.6"]),
    ("project-writable", "backup", {"volume": "{folder}:/project"}, ["CIS 5.6"]),
    ("flows-writable", "x", {"volume": "{folder}/flows:/flows"}, ["CIS 5.6"]),
    ("socket-of-the-gate", "upstream", {"volume": "{project}_gate:/g"}, ["OWASP 8"]),
    ("data-writable", "backup", {"volume": "{project}_data:/d"}, ["OWASP 8"]),
    ("flow-volume", "x", {"volume": "{project}-full:/f"}, ["OWASP 8"]),
    (
        "database-of-a-flow",
        "",
        {"restart": "no", "volume": "{project}_postgres-data:/d"},
        ["OWASP 8"],
    ),
    ("volume-of-the-host", "x", {"mount": BOUND}, ["CIS 5.6", "OWASP 8"]),
    ("propagation", "backup", {"volume": "{folder}:/p:ro,rshared"}, ["CIS 5.20"]),
    ("open-port", "x", {"publish": "0.0.0.0:4711:8000"}, ["CIS 5.14"]),
    ("every-port", "x", {"publish-all": True}, ["CIS 5.14"]),
    ("privileged-port", "x", {"publish": "127.0.0.1:81:8000"}, ["CIS 5.8"]),
    ("memory", "x", {"memory": None}, ["CIS 5.11"]),
    ("cpu", "x", {"cpu-shares": None}, ["CIS 5.12"]),
    ("processes", "x", {"pids-limit": -1}, ["CIS 5.29"]),
    ("cgroup", "x", {"cgroup-parent": "elsewhere.slice"}, ["CIS 5.25"]),
    ("always", "x", {"restart": "always"}, ["CIS 5.15"]),
    ("endless", "x", {"restart": "on-failure"}, ["CIS 5.15"]),
    ("one-shot-again", "deploy", {"restart": "unless-stopped"}, ["CIS 5.15"]),
    ("unwatched", "x", {"health-cmd": None, "no-healthcheck": True}, ["CIS 5.27"]),
    ("endless-log", "x", {"log-opt": None}, ["OWASP 7"]),
    ("no-log", "x", {"log-opt": None, "log-driver": "none"}, ["OWASP 7"]),
    ("environment", "x", {"env": "X={postgres}"}, ["OWASP 12"]),
    ("environment-encoded", "x", {"env": "X=Basic {basic}"}, ["OWASP 12"]),
    ("environment-of-a-flow", "", {"restart": "no", "env": "X={postgres}"}, ["OWASP 12"]),
    ("login-under-another-name", "", {"restart": "no", "env": "X={login}"}, ["OWASP 12"]),
    ("label", "x", {"label": "note={key}"}, ["OWASP 12"]),
    ("health-command", "x", {"health-cmd": "check {postgres}"}, ["OWASP 12"]),
    ("flow-memory", "", {"restart": "no", "memory": None}, ["CIS 5.11"]),
    ("flow-socket", "", {"restart": "no", "volume": SOCKET}, ["CIS 5.32"]),
]


@pytest.fixture(scope="module", autouse=True)
def _venv(stack: Stack) -> Iterator[None]:
    """What `make audit` and `make sbom` use of .venv."""
    link = stack.folder / ".venv"
    link.symlink_to(PROJECT / ".venv")
    yield
    link.unlink()


@pytest.fixture
def words(stack: Stack) -> dict[str, str]:
    """What is filled into a loosening."""
    settings = settings_of(stack.folder / ".env")
    return {
        "project": stack.project,
        "folder": str(stack.folder),
        "login": stack.login,
        "basic": base64.b64encode(stack.login.encode()).decode(),
        "postgres": settings["POSTGRES_PASSWORD"],
        "key": settings["PREFECT_SERVER_ENCRYPTION_KEY"],
    }


@pytest.fixture
def made(stack: Stack) -> Iterator[str]:
    """The prefix of what a test makes; all of that is removed."""
    prefix = f"{stack.project}-loose"
    yield prefix
    containers = docker("ps", "--all", "--quiet", "--filter", f"name=^{prefix}-").split()
    subprocess.run(["docker", "rm", "--force", *containers], capture_output=True)
    volumes = docker("volume", "ls", "--quiet", "--filter", f"name=^{prefix}-").split()
    subprocess.run(
        ["docker", "volume", "rm", *volumes, f"{stack.project}-full"], capture_output=True
    )
    images = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", f"{prefix}-*").split()
    subprocess.run(["docker", "image", "rm", "--force", *images], capture_output=True)


def options(service: str, changes: dict[str, Any], words: dict[str, str]) -> list[str]:
    """The options of `docker create` for a container of the stack's."""
    compose = "com.docker.compose"
    labels = [f"{compose}.project={words['project']}", f"{compose}.service={service}"]
    if not service:
        # Not on the flows' network: the worker would take it for one that lost its worker.
        changes = {"network": "none"} | changes
        labels = [f"io.prefect.flow-run-id={uuid.uuid4()}"]
    given = []
    for name, value in (GOOD | changes).items():
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                given.append(f"--{name}={str(one).lower() if one is True else one}")
    return [f"--label={label}" for label in labels] + [text.format(**words) for text in given]


def audit(stack: Stack, url: str) -> tuple[str, Broken]:
    """`make audit`, asking this advisory database; what it printed, and who breaks which rule."""
    done = stack.run("make", "audit", env={"OSV_URL": url})
    for key, secret in settings_of(stack.folder / ".env").items():
        if key.endswith(("PASSWORD", "STRING", "KEY")):
            assert secret not in done.stdout, key
    lines = r"^✗ (.+?) (\S+): expected .+, found .+\. Fix: .+$"
    broken = set(re.findall(lines, done.stdout, re.M))
    assert done.returncode == (2 if broken else 0), done.stdout
    # Since the base image was made, Debian may have released an update.
    updates = {one for one in broken if one[0] == "CIS 4.4" and not one[1].endswith("-old:1")}
    return done.stdout, broken - updates


def test_the_stack_and_a_flow_container_pass(stack: Stack, first_run: dict[str, Any]) -> None:
    before = {run["id"] for run in stack.runs(DAILY)}
    with advisory_database() as url:
        output, broken = audit(stack, url)
    assert broken == set(), output
    assert "packages, asked of a database" in output
    assert "not looked at" not in output
    assert re.search(r"a flow container looked at +pass", output)
    # The run whose container was looked at is one like any other.
    (run,) = {run["id"] for run in stack.runs(DAILY)} - before
    assert stack.finished(run)["state_type"] == "COMPLETED"


def test_without_a_flow_container_the_rest_is_judged(
    stack: Stack, first_run: dict[str, Any]
) -> None:
    output = stack.make("audit", "FLOW=cat-fact/on-demand", code=2)  # in fork-pool, so without one
    assert "✗ - stack: expected a flow container looked at, found none" in output
    assert re.search(r"a user that isn't root .+ pass", output)


def test_an_unknown_flow_is_refused(stack: Stack, first_run: dict[str, Any]) -> None:
    output = stack.make("audit", "FLOW=nobody/knows", code=2)
    assert "found:    nobody/knows" in output
    assert "rule" not in output


def test_every_loosening_is_found(
    stack: Stack, first_run: dict[str, Any], words: dict[str, str], made: str
) -> None:
    image = {True: f"{stack.project}-flow:local", False: f"{stack.project}-upstream:local"}
    expected: Broken = set()
    for name, service, changes, rules in LOOSE:
        given = options(service, changes, words)
        docker("create", f"--name={made}-{name}", *given, image[not service])
        expected |= {(rule, f"{made}-{name}") for rule in rules}
    expected |= loosen_images(stack, words, made) | loosen_processes(words, made, image[False])

    with loosened_files(stack, words), opened_api(stack), opened_ports(stack):
        output, broken = audit(stack, "http://127.0.0.1:1/")
    expected |= {("OWASP 12", "stack"), ("CIS 4.2", "stack"), ("CIS 4.10", "stack")}
    expected |= {("OWASP 5", "stack"), ("-", "stack")}
    assert broken - {("OWASP 9", "stack")} == expected  # with no database, uv.lock may be too old
    assert "no advisory database reachable" in output
    assert re.search(r"no old uv\.lock .*(not looked at|FAIL) *$", output, re.M)
    assert f"{made}-unlisted:1: no list" in output
    assert "debian-archive-keyring [1] (" in output
    for text in ("HOST_PORTS=all", "no table of the firewall's in the kernel"):
        assert f"this machine's ports closed to containers, found {text}" in output
    for text in (
        "the login, found status 200",
        "token, found status 200",
        "sites, found * allowed",
    ):
        assert text in output
    for text in ("env: -rw-r--r--", "secrets: drwxr-xr-x", "PASSPHRASE: 5", "debian:latest"):
        assert text in output
    assert "privileged in docker-compose.yml, then: make up" in output
    assert (
        "mem_limit in worker/base-job-template.json or job_variables, then: make deploy" in output
    )


def loosen_images(stack: Stack, words: dict[str, str], made: str) -> Broken:
    """Containers of images that have a secret, no labels, or a tag that moves."""
    ours = f"FROM {stack.project}-upstream:local\n"
    bare = f"FROM debian:trixie-slim\nLABEL com.docker.compose.project={stack.project}\n"
    images = {
        f"{made}-variable:1": ours + "ENV X={postgres}",
        f"{made}-layer:1": ours + "RUN : {postgres}",
        f"{made}-labelled:1": ours + 'LABEL org.opencontainers.image.source="http://{login}@git"',
        f"{made}-bare:1": bare,
        f"{made}-old:1": ours
        + "USER 0\nRUN sed -i '/^Package: debian-archive-keyring$/,/^$/s/^Version: .*/Version: 1/' "
        "/var/lib/dpkg/status\nUSER 10001",
        f"{made}-unlisted:1": ours + "USER 0\nRUN rm /var/lib/dpkg/status\nUSER 10001",
        f"{made}-moving:latest": ours,
    }
    for name, dockerfile in images.items():
        text = dockerfile.format(**words)
        command = ["docker", "build", "--quiet", "--network=none", f"--tag={name}", "-"]
        subprocess.run(command, input=text, text=True, check=True, capture_output=True)
        container = name.partition(":")[0]
        docker("create", f"--name={container}", *options("x", {}, words), name, "true")
    return {
        ("CIS 4.10", f"{made}-variable:1"),
        ("OWASP 12", f"{made}-variable"),  # a container has its image's variables
        ("CIS 4.10", f"{made}-layer:1"),
        ("CIS 4.10", f"{made}-labelled:1"),
        ("OWASP 12", f"{made}-labelled"),
        ("OCI", f"{made}-bare:1"),
        ("CIS 4.4", f"{made}-old:1"),
        ("OWASP 13", f"{made}-moving"),
    }


def loosen_processes(words: dict[str, str], made: str, image: str) -> Broken:
    """Containers with a secret in a log, a command, a process; and one with sshd."""
    quiet = {"restart": "no", "network": "none"}
    given = options("x", quiet, words)
    command = ["docker", "run", "--interactive", f"--name={made}-log", *given, image, "cat"]
    subprocess.run(command, input=f"dsn={words['postgres']}\n", text=True, check=True)
    docker("create", f"--name={made}-command", *given, image, "echo", words["login"])
    docker("run", "--detach", f"--name={made}-process", *given, image, "sleep", "300")
    docker("exec", "--detach", f"{made}-process", "sh", "-c", f"sleep 300; : {words['key']}")
    sshd = ["bash", "-c", "exec -a sshd sleep 300"]
    docker("run", "--detach", f"--name={made}-sshd", *given, image, *sshd)
    return {
        ("OWASP 12", f"{made}-log"),
        ("OWASP 12", f"{made}-command"),
        ("OWASP 12", f"{made}-process"),
        ("CIS 5.7", f"{made}-sshd"),
    }


@contextlib.contextmanager
def loosened_files(stack: Stack, words: dict[str, str]) -> Iterator[None]:
    """The project's files with a moving base, a secret, and open modes; then as they were."""
    env, secrets, loose = (stack.folder / name for name in (".env", ".secrets", "loose"))
    before = env.read_text()
    try:
        env.write_text(before.replace("BACKUP_PASSPHRASE=", "BACKUP_PASSPHRASE=short"))
        env.chmod(0o644)
        secrets.chmod(0o755)
        loose.mkdir()
        (loose / "Dockerfile").write_text(f"FROM debian:latest\nARG PASSWORD={words['postgres']}\n")
        yield
    finally:
        env.write_text(before)
        env.chmod(0o600)
        secrets.chmod(0o700)
        shutil.rmtree(loose)


@contextlib.contextmanager
def opened_api(stack: Stack) -> Iterator[None]:
    """A server that asks for no login and no token, and lets every site's page read."""
    path = stack.folder / "docker-compose.yml"
    before = path.read_text()
    loose = before.replace("PREFECT_SERVER_API_AUTH_STRING_FILE: ", "NOBODY_READS_THIS: ")
    loose = loose.replace('CSRF_PROTECTION_ENABLED: "true"', 'CSRF_PROTECTION_ENABLED: "false"')
    loose = loose.replace("CORS_ALLOWED_ORIGINS: *ui-url", 'CORS_ALLOWED_ORIGINS: "*"')
    command = ["docker", "compose", "up", "--detach", "--wait", "server"]
    try:
        path.write_text(loose)
        assert stack.run(*command).returncode == 0
        yield
    finally:
        path.write_text(before)
        assert stack.run(*command).returncode == 0


@contextlib.contextmanager
def opened_ports(stack: Stack) -> Iterator[None]:
    """The packet filter without the firewall's table, which nobody puts back; then as it was."""
    inside = ["docker", "compose", "exec", "-T", "firewall"]
    assert stack.run(*inside, "sh", "-c", "kill -STOP -1").returncode == 0
    try:
        done = stack.run(*inside, "nft", "delete", "table", "inet", f"flows-{stack.port}")
        assert done.returncode == 0, done.stdout
        yield
    finally:
        stack.run(*inside, "sh", "-c", "kill -CONT -1")
        loaded = [*inside, "firewall.sh", "check"]
        eventually("the table", 30, lambda: stack.run(*loaded).returncode == 0 or None)


def labels(image: str) -> dict[str, str]:
    text = docker("image", "inspect", "--format", "{{json .Config.Labels}}", image)
    found: dict[str, str] = json.loads(text)
    return found


def ids(stack: Stack) -> list[str]:
    names = stack.run("docker", "compose", "config", "--images").stdout.split()
    return docker("image", "inspect", "--format", "{{.Id}}", *sorted(set(names))).split()


def test_images_say_what_they_are_and_are_built_once(stack: Stack) -> None:
    titles = set()
    for name in OURS:
        found = labels(f"{stack.project}-{name}:local")
        said = {label: found[f"org.opencontainers.image.{label}"] for label in LABELS}
        assert all(said.values()), said
        assert said["version"] == "0.1.0"
        assert said["licenses"] == "Apache-2.0"
        assert said["revision"] == "unknown"  # a copy without git
        titles.add(said["title"])
    assert len(titles) == len(OURS)
    before = ids(stack)
    stack.make("images")
    assert ids(stack) == before


def test_a_bill_of_materials_for_each_image(stack: Stack) -> None:
    def bills() -> dict[str, str]:
        done = stack.run("ops/sbom.sh")
        assert done.returncode == 0, done.stdout
        return {path.name: path.read_text() for path in (stack.folder / "sbom").iterdir()}

    found = bills()
    assert found.keys() == {f"{name}.cdx.json" for name in (*OURS, "postgres")}
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    for text in found.values():
        assert validator.validate_str(text) is None
    assert bills() == found

    server = json.loads(found["server.cdx.json"])
    (base,) = server["metadata"]["component"]["pedigree"]["ancestors"]
    assert (base["name"], base["version"]) == ("debian", "trixie-slim")
    purls = {one.get("purl", "").split("?")[0]: one for one in server["components"]}
    command = "dpkg-query --show --showformat '${Package}@${Version}\\n'"
    image = f"{stack.project}-server:local"
    packages = docker("run", "--rm", "--entrypoint=sh", image, "-c", command).split()
    # A purl has some characters of a version encoded.
    assert len([purl for purl in purls if purl.startswith("pkg:deb/debian/")]) == len(packages)
    command = "ls -d /opt/venv/lib/python3*/site-packages/*.dist-info"
    names = docker("run", "--rm", "--entrypoint=sh", image, "-c", command).split()
    assert len([purl for purl in purls if purl.startswith("pkg:pypi/")]) == len(names)
    (prefect,) = [one for purl, one in purls.items() if purl.startswith("pkg:pypi/prefect@")]
    assert prefect["licenses"][0]["license"]["id"] == "Apache-2.0"
    (libc,) = [one for purl, one in purls.items() if purl.startswith("pkg:deb/debian/libc6@")]
    assert libc["licenses"]

    flow = json.loads(found["flow.cdx.json"])["components"]
    (ours,) = [one for one in flow if one["name"] == "prefect-fork"]
    assert ours["purl"].startswith("pkg:generic/prefect-fork@")
    postgres = json.loads(found["postgres.cdx.json"])["components"]
    assert "postgresql-17" in {one["name"] for one in postgres}


def test_no_bill_without_images(project_copy: Stack) -> None:
    done = project_copy.run("ops/sbom.sh")
    assert done.returncode == 1
    assert "make up" in done.stdout
    assert not Path(project_copy.folder / "sbom").exists()
