"""Is the stack as locked down as it is meant to be? A row a rule, a line for what breaks one.

Reads the tar that ops/audit.sh packs of what Docker says; the arguments are the project's name and
its folder's. Numbers are those of the CIS Docker Benchmark 1.6 and of OWASP's Docker Security Cheat
Sheet. Exit code 0 only if no rule is broken; what couldn't be looked at doesn't pass, but is named.
A secret is told by its name, never by its value.
"""

import base64
import json
import re
import sys
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import IO, Any, Generic, TypeVar
from urllib.parse import quote

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ops.status import ONE_SHOTS

# ── Who may do what the others may not ───────────────────────────────────────────────────────────
SOCKET = {"gate"}  # asks Docker for flow containers
PUBLIC = {"proxy"}  # what other machines may see, by TLS
# Reads .env and what flows wrote, whoever owns it; changes the machine's packet filter.
ROOT = {"backup", "firewall"}
CAPABILITIES = {"backup": {"CHOWN", "DAC_OVERRIDE"}, "firewall": {"NET_ADMIN"}}
HOST_NETWORK = {"firewall"}
DATABASE = {"postgres", "migrate", "server", "backup"}  # on the database's network
FLOW_SECRETS = {"PREFECT_API_AUTH_STRING"}  # the worker hands it over: a flow reports to the API
# What each is given of the project's folder and of the stack's volumes, as the Compose file has it.
# A service that isn't here may have nothing.
MOUNTS = {
    "postgres": {"./.secrets/postgres_password:ro", "postgres-data:rw"},
    "migrate": {"./.secrets/postgres_password:ro"},
    "server": {
        "./.secrets/api_auth_string:ro",
        "./.secrets/encryption_key:ro",
        "./.secrets/postgres_password:ro",
        "server:rw",
    },
    "deploy": {"./.secrets/alert_webhook_url:ro", "./.secrets/api_auth_string:ro", "data:rw"},
    "gate": {"gate:rw"},
    "worker": {"./.secrets/api_auth_string:ro", "gate:rw"},
    "fork-worker": {"./.secrets/api_auth_string:ro", "data:rw"},
    "backup": {".:ro", "./backups:rw", "data:ro"},
    "proxy": {
        "CA_BUNDLE:ro",
        "./.secrets/tls_fullchain:ro",
        "./.secrets/tls_privkey:ro",
        "proxy:rw",
    },
}
FLOW_MOUNTS = {"data:rw"}  # and what FLOW_VOLUMES names

SECRETS = (
    "PREFECT_API_AUTH_STRING",
    "POSTGRES_PASSWORD",
    "PREFECT_SERVER_ENCRYPTION_KEY",
    "BACKUP_PASSPHRASE",
    "ALERT_WEBHOOK_URL",
)
SHORTEST = 12  # characters of a secret; a shorter one can be guessed, and is in every other word
STALE_DAYS = 90
# File systems of a volume that show nothing of the host's; "": Docker's own folder for it.
ELSEWHERE = {"", "tmpfs", "nfs", "nfs4", "cifs"}
LABELS = ("title", "description", "version", "revision", "source", "licenses")
COMPOSE = "docker-compose.yml"
THERE = f" in {COMPOSE}, then: make up"
API = "http://127.0.0.1:4200/api"
NEW_BASES = "docker image rm --force debian:trixie-slim postgres:17-trixie"

T = TypeVar("T")


# ── What there is ────────────────────────────────────────────────────────────────────────────────
@dataclass
class Stack:
    """All of it."""

    project: str
    folders: list[PurePosixPath]  # the project's, under each of its names
    secrets: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)  # .env
    volumes: dict[str, dict[str, Any]] = field(default_factory=dict)  # docker volume inspect
    containers: list["Container"] = field(default_factory=list)
    images: list["Image"] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)  # the API's, by who asks

    def secrets_in(self, text: str) -> list[str]:
        """The names of the secrets that a text gives away."""
        known = self.secrets.items()
        return [name for name, value in known if any(form in text for form in forms(value))]

    @property
    def flow_volumes(self) -> list[str]:
        """Those that flows may have besides the stack's own."""
        return self.settings.get("FLOW_VOLUMES", "").replace(",", " ").split()

    def named(self, mount: dict[str, Any]) -> str | None:
        """A mount's source, as the table has it; None if it is of elsewhere."""
        if mount["Type"] != "bind":
            project, _, name = mount.get("Name", "").partition(f"{self.project}_")
            return None if project else name
        path = mount["Source"].removeprefix("/host_mnt")  # Docker Desktop's own prefix
        if path in {"/dev/null", self.settings.get("CA_BUNDLE")}:
            return "CA_BUNDLE"
        for folder in self.folders:
            if PurePosixPath(path).is_relative_to(folder):
                inside = PurePosixPath(path).relative_to(folder)
                return "." if inside == PurePosixPath() else f"./{inside}"
        return None


@dataclass
class Container:
    """A container of the stack's."""

    stack: Stack
    facts: dict[str, Any]  # docker inspect
    processes: str  # docker top
    logged: list[str]  # the secrets in its log, by name

    def __post_init__(self) -> None:
        """Names what the rules ask for most."""
        self.name = str(self.facts["Name"]).removeprefix("/")
        self.config: dict[str, Any] = self.facts["Config"]
        self.host: dict[str, Any] = self.facts["HostConfig"]
        labels = self.config["Labels"] or {}
        self.flow_run = labels.get("io.prefect.flow-run-id")
        self.is_flow = self.flow_run is not None
        self.service = "" if self.is_flow else labels.get("com.docker.compose.service", "")
        # Does it do its work and end?
        one_off = labels.get("com.docker.compose.oneoff") == "True"
        self.ends = self.is_flow or one_off or self.service in ONE_SHOTS

    @property
    def binds(self) -> list[dict[str, Any]]:
        """What it sees of the host's file system."""
        return [mount for mount in self.facts["Mounts"] if mount["Type"] == "bind"]

    @property
    def volumes(self) -> list[dict[str, Any]]:
        """What else may hold something of others': all but memory."""
        kinds = {"bind", "tmpfs"}
        return [mount for mount in self.facts["Mounts"] if mount["Type"] not in kinds]

    def is_socket(self, mount: dict[str, Any]) -> bool:
        """Is it an engine's?"""
        by_name = re.search(r"/(docker|containerd|podman|crio)\.sock$", mount["Source"])
        return bool(by_name) or mount["Source"] == self.stack.settings.get("DOCKER_SOCKET")

    def is_meant(self, mount: dict[str, Any]) -> bool:
        """Is it in the table? Who may write may also only read."""
        if self.is_flow and mount.get("Name") in self.stack.flow_volumes:
            return True
        name = self.stack.named(mount)
        allowed = FLOW_MOUNTS if self.is_flow else MOUNTS.get(self.service, set())
        return bool({f"{name}:{mode_of(mount)}", f"{name}:rw"} & allowed)

    @property
    def ports(self) -> list[tuple[str, int]]:
        """Address and port on the host of each that is published; port 0 is any."""
        return [
            (one["HostIp"] or "0.0.0.0", int(one["HostPort"] or 0))  # noqa: S104
            for bindings in (self.host["PortBindings"] or {}).values()
            for one in bindings or []
        ]


@dataclass
class Image:
    """An image that a container of the stack's is made of."""

    stack: Stack
    name: str
    facts: dict[str, Any]  # docker image inspect
    history: str
    updates: list[str]  # Debian's, that it hasn't got
    unasked: str  # why nobody knows, if so


# ── Rules: what is expected, how to mend it, and a function that finds what isn't so ─────────────
class NotLookedAt(Exception):
    """Why a rule couldn't be applied."""


@dataclass
class Rule(Generic[T]):
    """A row of the table."""

    number: str
    what: str
    fix: str
    wrong: Callable[[T], list[str]]


CONTAINERS: list[Rule[Container]] = []
IMAGES: list[Rule[Image]] = []
WHOLE: list[Rule[Stack]] = []


def rule(
    rules: list[Rule[T]], number: str, what: str, fix: str
) -> Callable[[Callable[[T], list[str]]], None]:
    """Makes a row of a function."""
    return lambda wrong: rules.append(Rule(number, what, fix, wrong))


def when(condition: object, found: str) -> list[str]:
    """What was found, if it was."""
    return [found] if condition else []


def mode_of(mount: dict[str, Any]) -> str:
    """As Compose writes it."""
    return "rw" if mount["RW"] else "ro"


@rule(CONTAINERS, "CIS 4.1", "a user that isn't root", 'user: "10001:10001"')
def _(container: Container) -> list[str]:
    user = str(container.config["User"])
    uid = user.split(":")[0]
    is_root = uid in {"", "root"} or (uid.isdigit() and int(uid) == 0)
    return when(is_root and container.service not in ROOT, user or "root, by default")


@rule(CONTAINERS, "CIS 5.4", "no capabilities", "cap_drop: [ALL], no cap_add")
def _(container: Container) -> list[str]:
    dropped = container.host["CapDrop"] or []
    added = {name.removeprefix("CAP_") for name in container.host["CapAdd"] or []}
    added -= CAPABILITIES.get(container.service, set())
    kept = when("ALL" not in dropped, "not all of them dropped")
    return kept + when(added, f"added: {', '.join(sorted(added))}")


@rule(CONTAINERS, "CIS 5.5", "not privileged", "no privileged")
def _(container: Container) -> list[str]:
    return when(container.host["Privileged"], "privileged")


@rule(CONTAINERS, "CIS 5.26", "no new privileges", "security_opt: no-new-privileges:true")
def _(container: Container) -> list[str]:
    options = {option.replace("=", ":") for option in container.host["SecurityOpt"] or []}
    return when(not options & {"no-new-privileges", "no-new-privileges:true"}, "not said")


@rule(CONTAINERS, "CIS 5.22", "seccomp, AppArmor, SELinux, masked paths", "no security_opt for it")
def _(container: Container) -> list[str]:
    host = container.host
    options = host["SecurityOpt"] or []
    off = {option for option in options if re.search(r"unconfined|label[:=]disable", option)}
    if host["Privileged"] or "host" in (host["PidMode"], host["IpcMode"]):
        off.discard("label=disable")  # by Docker itself, and another rule's
    elif not host["MaskedPaths"]:
        off.add("systempaths=unconfined")
    return sorted(off)


@rule(CONTAINERS, "CIS 5.13", "a read-only root file system", "read_only: true")
def _(container: Container) -> list[str]:
    return when(not container.host["ReadonlyRootfs"], "a writable one")


def shared(key: str) -> Callable[[Container], list[str]]:
    """Finds a namespace that isn't the container's own."""

    def wrong(container: Container) -> list[str]:
        mode = container.host[key]
        return when(re.match(r"host$|shareable$|container:", mode), mode)

    return wrong


@rule(CONTAINERS, "CIS 5.10", "a network of its own, but for firewall", "no network_mode")
def _(container: Container) -> list[str]:
    return [] if container.service in HOST_NETWORK else shared("NetworkMode")(container)


rule(CONTAINERS, "CIS 5.16", "processes of its own", "no pid")(shared("PidMode"))
rule(CONTAINERS, "CIS 5.17", "IPC of its own", "no ipc")(shared("IpcMode"))
rule(CONTAINERS, "CIS 5.21", "a host name of its own", "no uts")(shared("UTSMode"))
rule(CONTAINERS, "CIS 5.31", "the engine's user namespace", "no userns_mode")(shared("UsernsMode"))


@rule(CONTAINERS, "CIS 5.30", "not on Docker's default bridge", "networks")
def _(container: Container) -> list[str]:
    return when(container.host["NetworkMode"] in {"bridge", "default"}, "on it")


@rule(CONTAINERS, "OWASP 5", "only who asks the database on its network", "networks")
def _(container: Container) -> list[str]:
    found = container.facts["NetworkSettings"]["Networks"] or {}
    backend = f"{container.stack.project}_backend"
    return when(backend in found and container.service not in DATABASE, backend)


@rule(CONTAINERS, "CIS 5.18", "no devices of the host's", "no devices")
def _(container: Container) -> list[str]:
    keys = ("Devices", "DeviceRequests", "DeviceCgroupRules")
    return [f"{key}: {json.dumps(found)}" for key in keys if (found := container.host[key])]


@rule(CONTAINERS, "CIS 5.32", "the Docker socket with the gate alone", "no such volume")
def _(container: Container) -> list[str]:
    found = [mount["Source"] for mount in container.binds if container.is_socket(mount)]
    return [] if container.service in SOCKET else found


@rule(CONTAINERS, "CIS 5.6", "of the host only what is meant for it", "no such mount")
def _(container: Container) -> list[str]:
    found = [
        f"{mount['Source']}:{mount['Destination']}:{mode_of(mount)}"
        for mount in container.binds
        if not container.is_socket(mount) and not container.is_meant(mount)
    ]
    known = container.stack.volumes
    names = [mount["Name"] for mount in container.volumes if mount["Type"] == "volume"]
    for name in names:
        found += [f"volume {name}, which is {host}" for host in of_host(known.get(name, {}))]
    if not found and (unknown := set(names) - known.keys()):
        raise NotLookedAt(f"Docker said nothing of {', '.join(sorted(unknown))}")
    return found


def of_host(volume: dict[str, Any]) -> list[str]:
    """What a volume shows of the host's; nothing if its files are its own."""
    options = volume.get("Options") or {}
    # With `bind`, the kernel doesn't look at the type.
    bound = re.search(r"\br?bind\b", options.get("o", ""))
    elsewhere = options.get("type", "") in ELSEWHERE and not bound
    return when(not elsewhere, str(options.get("device")))


@rule(CONTAINERS, "OWASP 8", "no volumes but what is meant for it", "no such mount")
def _(container: Container) -> list[str]:
    return [
        f"{mount.get('Name') or mount.get('Source')}:{mount['Destination']}:{mode_of(mount)}"
        for mount in container.volumes
        if not container.is_meant(mount)
    ]


@rule(CONTAINERS, "CIS 5.20", "mounts that don't show outside", "no propagation: shared")
def _(container: Container) -> list[str]:
    mounts = container.facts["Mounts"]
    return [
        f"{mount['Destination']}: {mount['Propagation']}"
        for mount in mounts
        if mount.get("Propagation") in {"shared", "rshared"}
    ]


@rule(CONTAINERS, "CIS 5.14", "ports on the loopback, but for proxy", 'ports: ["127.0.0.1:…"]')
def _(container: Container) -> list[str]:
    loopback = ("127.", "::1")
    found = [f"{ip}:{port or 'any'}" for ip, port in container.ports if not ip.startswith(loopback)]
    found += when(container.host["PublishAllPorts"], "all of its ports, everywhere")
    return [] if container.service in PUBLIC else found


@rule(CONTAINERS, "CIS 5.8", "no privileged ports, but for proxy", "a port from 1024 on")
def _(container: Container) -> list[str]:
    found = [f"{ip}:{port}" for ip, port in container.ports if 0 < port < 1024]
    return [] if container.service in PUBLIC else found


@rule(CONTAINERS, "CIS 5.11", "bounded memory", "mem_limit")
def _(container: Container) -> list[str]:
    return when(not container.host["Memory"], "no bound")


@rule(CONTAINERS, "CIS 5.12", "a CPU priority of its own", "cpu_shares")
def _(container: Container) -> list[str]:
    chosen = container.host["CpuShares"] not in {0, 1024} or container.host["NanoCpus"]
    return when(not chosen, "the default")


@rule(CONTAINERS, "CIS 5.29", "bounded processes", "pids_limit")
def _(container: Container) -> list[str]:
    return when((container.host["PidsLimit"] or 0) <= 0, "no bound")


@rule(CONTAINERS, "CIS 5.25", "the engine's cgroup, or the gate's for flows", "no cgroup_parent")
def _(container: Container) -> list[str]:
    return when(container.host["CgroupParent"] and not container.is_flow, "another one")


# CIS asks for on-failure:5, by which nothing would come back after a reboot.
@rule(CONTAINERS, "CIS 5.15", "no restart of what ended or was stopped", "restart: unless-stopped")
def _(container: Container) -> list[str]:
    policy = container.host["RestartPolicy"]
    name = policy["Name"] or "no"
    bounded = name == "no" or (name == "on-failure" and 0 < policy["MaximumRetryCount"] <= 5)
    return when(not bounded and (container.ends or name != "unless-stopped"), name)


@rule(CONTAINERS, "CIS 5.27", "a health check for what lasts", "healthcheck")
def _(container: Container) -> list[str]:
    test = (container.config.get("Healthcheck") or {}).get("Test") or ["NONE"]
    return when(test == ["NONE"] and not container.ends, "none")


@rule(CONTAINERS, "OWASP 7", "bounded logs", "logging: max-size, max-file")
def _(container: Container) -> list[str]:
    log = container.host["LogConfig"]
    bounded = log["Type"] == "local" or {"max-size", "max-file"} <= (log["Config"] or {}).keys()
    return when(not bounded, f"{log['Type']} {json.dumps(log['Config'] or {})}")


@rule(CONTAINERS, "CIS 5.7", "no sshd", "no sshd")
def _(container: Container) -> list[str]:
    return when("sshd" in container.processes, "a process of that name")


def unpinned(image: str) -> list[str]:
    """An image without a tag, or with the one that moves."""
    name = image.rsplit("/", 1)[-1]
    pinned = "@sha256:" in image or (":" in name and not name.endswith(":latest"))
    return when(not pinned, image)


@rule(CONTAINERS, "OWASP 13", "an image by a tag that stays", "image: name:tag")
def _(container: Container) -> list[str]:
    return unpinned(container.config["Image"])


@rule(CONTAINERS, "OWASP 12", "no secret in the environment", "its file, in secrets,")
def _(container: Container) -> list[str]:
    allowed = FLOW_SECRETS if container.is_flow else set()
    entries = [entry.partition("=") for entry in container.config["Env"] or []]
    texts = [(name, value) for name, _, value in entries if name not in allowed]
    return secrets_named(container.stack, texts)


@rule(CONTAINERS, "OWASP 12", "no secret in labels, commands, processes", "its file, in secrets,")
def _(container: Container) -> list[str]:
    texts = [*strings(container.facts), ("docker top", container.processes)]
    return secrets_named(container.stack, [text for text in texts if text[0] != "Config.Env"])


@rule(CONTAINERS, "OWASP 12", "no secret in logs", "another one of it in .env, not printed")
def _(container: Container) -> list[str]:
    return container.logged


@rule(IMAGES, "CIS 4.4", "none of Debian's updates amiss", f"{NEW_BASES}, then: make up")
def _(image: Image) -> list[str]:
    if image.unasked and not image.updates:
        raise NotLookedAt(image.unasked)
    more = [f"{len(image.updates) - 5} more"] if len(image.updates) > 5 else []
    return when(image.updates, ", ".join(image.updates[:5] + more))


@rule(IMAGES, "CIS 4.10", "no secret in an image", "take it out of the Dockerfile, and rotate it")
def _(image: Image) -> list[str]:
    return secrets_named(image.stack, [*strings(image.facts), ("its history", image.history)])


@rule(IMAGES, "OCI", "labels that say what an image is", "docker-compose.yml's build: labels")
def _(image: Image) -> list[str]:
    labels = image.facts["Config"]["Labels"] or {}
    ours = labels.get("com.docker.compose.project") == image.stack.project
    names = [f"org.opencontainers.image.{name}" for name in LABELS]
    return [f"no {name}" for name in names if ours and not labels.get(name)]


@rule(WHOLE, "CIS 4.2", "base images by a tag that stays", "FROM name:tag, never latest")
def _(stack: Stack) -> list[str]:
    found = []
    for name, text in stack.files.items():
        if name.endswith("Dockerfile"):
            lines = re.findall(r"^FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?", text, re.I | re.M)
            stages = {stage for _, stage in lines} | {"scratch"}
            found += [
                f"{name}: {base}" for base, _ in lines if base not in stages and unpinned(base)
            ]
    return found


@rule(WHOLE, "CIS 4.10", "no secret in Dockerfiles and Compose file", "take it out, and rotate it")
def _(stack: Stack) -> list[str]:
    files = stack.files.items()
    return secrets_named(
        stack, [file for file in files if file[0].endswith(("Dockerfile", COMPOSE))]
    )


@rule(WHOLE, "OWASP 12", "secrets' files for their owner alone", "chmod go= FILE")
def _(stack: Stack) -> list[str]:
    rows = [line.split() for line in stack.files["modes"].splitlines()]
    return [f"{row[-1]}: {row[0]}" for row in rows if row[0][4:10] != "------"]


@rule(WHOLE, "OWASP 12", f"secrets of {SHORTEST} characters or more", "another one in .env")
def _(stack: Stack) -> list[str]:
    known = stack.secrets.items()
    lengths = {name: len(value.split(":", 1)[-1]) for name, value in known if "://" not in value}
    return [f"{name}: {length}" for name, length in lengths.items() if length < SHORTEST]


@rule(WHOLE, "OWASP 5", "the database's network without a way out", "internal: true")
def _(stack: Stack) -> list[str]:
    found = json.loads(stack.files["networks.json"])
    backend = [one for one in found if one["Name"] == f"{stack.project}_backend"]
    if not backend:
        raise NotLookedAt(f"no network {stack.project}_backend")
    return [one["Name"] for one in backend if not one["Internal"]]


@rule(
    WHOLE,
    "OWASP 5",
    "this machine's ports closed to containers",
    "HOST_PORTS in .env, then: make up",
)
def _(stack: Stack) -> list[str]:
    firewalls = [one.config["Env"] or [] for one in stack.containers if one.service == "firewall"]
    # The firewall's own check says nothing against it: it does as it is told.
    found = when(any("HOST_PORTS=all" in env for env in firewalls), "HOST_PORTS=all")
    said = ["", *stack.files["filter"].splitlines()][-1]
    return found + when(said != "loaded", said or "no table of the firewall's in the kernel")


def answer(stack: Stack, who: str) -> str:
    """What the API said to them."""
    if not stack.answers:
        raise NotLookedAt("no answer from the API")
    return stack.answers[who]


@rule(WHOLE, "-", "the API closed without the login", f"server's ..._API_AUTH_STRING_FILE{THERE}")
def _(stack: Stack) -> list[str]:
    said = answer(stack, "nobody")
    return when(said != "401", f"status {said}")


@rule(WHOLE, "-", "no change without a CSRF token", f"server's ..._CSRF_PROTECTION_ENABLED{THERE}")
def _(stack: Stack) -> list[str]:
    said = answer(stack, "without a token")
    return when(said != "403", f"status {said}")


@rule(WHOLE, "-", "the API closed to other sites", f"server's ..._CORS_ALLOWED_ORIGINS{THERE}")
def _(stack: Stack) -> list[str]:
    said = answer(stack, "another site")
    return when(said, f"{said} allowed")


@rule(
    WHOLE,
    "-",
    "a flow container looked at",
    "make logs; or, for a deployment of docker-pool: make audit FLOW=flow/deployment",
)
def _(stack: Stack) -> list[str]:
    run = stack.files["run"].strip()
    return when(run not in {container.flow_run for container in stack.containers}, "none")


@rule(WHOLE, "OWASP 9", "no known vulnerability, no old uv.lock", "uv lock --upgrade, make up")
def _(stack: Stack) -> list[str]:
    report = known(stack)
    if report is None:
        if lock_age(stack) > STALE_DAYS:
            return [f"uv.lock, {lock_age(stack)} days old"]
        raise NotLookedAt(who_was_asked(stack))
    return [
        "{name} {version}: ".format(**one["dependency"])
        + f"{one['display_id']}, fixed in {', '.join(one['fix_versions']) or 'no version yet'}"
        for one in report["vulnerabilities"]
    ]


def known(stack: Stack) -> dict[str, Any] | None:
    """What an advisory database said, by `uv audit`; None if none answered."""
    try:
        report: dict[str, Any] = json.loads(stack.files.get("advisories.json", ""))
    except ValueError:
        return None
    return report


def lock_age(stack: Stack) -> int:
    """How many days ago the newest package of uv.lock came out."""
    newest = max(re.findall(r'upload-time = "([^"]+)"', stack.files["uv.lock"]))
    return (datetime.now(UTC) - datetime.fromisoformat(newest)).days


def who_was_asked(stack: Stack) -> str:
    """Of vulnerabilities: a database, or only the calendar."""
    if report := known(stack):
        return f"{report['summary']['audited_packages']} packages, asked of a database"
    reason = (stack.files["advisories.error"].strip().splitlines() or ["no answer"])[-1]
    age = f"uv.lock is {lock_age(stack)} days old, by the newest package in it"
    return f"no advisory database reachable ({reason.strip().removeprefix('cause: ')}); {age}"


# ── Secrets ──────────────────────────────────────────────────────────────────────────────────────
def forms(value: str) -> set[str]:
    """The ways in which a secret may be written: as it is, encoded; a login's password alone."""
    plain = {value} if "://" in value else {value, value.split(":", 1)[-1]}
    plain = {form for form in plain if len(form) >= SHORTEST}
    return plain | {
        encoded
        for form in plain
        for encoded in (
            base64.b64encode(form.encode()).decode().rstrip("="),
            base64.urlsafe_b64encode(form.encode()).decode().rstrip("="),
            quote(form, safe=""),
        )
    }


def strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in what Docker says, with the way to it; keys included."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield path, key
            yield from strings(item, f"{path}.{key}".strip("."))
    elif isinstance(value, list):
        for item in value:
            yield from strings(item, path)
    elif isinstance(value, str):
        yield path, value


def secrets_named(stack: Stack, texts: Iterable[tuple[str, str]]) -> list[str]:
    """Which secret is in which text."""
    found = {f"{name} in {where}" for where, text in texts for name in stack.secrets_in(text)}
    return sorted(found)


def secrets_of(stack: Stack, log: IO[bytes]) -> list[str]:
    """The names of the secrets that a log gives away."""
    every = {form for value in stack.secrets.values() for form in forms(value)}
    pattern = re.compile("|".join(map(re.escape, sorted(every, key=len, reverse=True))).encode())
    hits = {hit.decode() for line in log for hit in pattern.findall(line) if hit}
    return sorted({secret for hit in hits for secret in stack.secrets_in(hit)})


# ── Reading and telling ──────────────────────────────────────────────────────────────────────────
def read(source: IO[bytes], project: str, folders: list[str]) -> Stack:
    """The stack, as the tar has it."""
    stack = Stack(project, [PurePosixPath(folder) for folder in folders])
    texts: dict[str, dict[str, str]] = defaultdict(dict)
    logged: dict[str, list[str]] = {}
    with tarfile.open(fileobj=source, mode="r|") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is None:
                continue
            path = PurePosixPath(member.name)
            if str(path.parent) == "logs":
                logged[path.name] = secrets_of(stack, content)
            elif str(path) == ".env":
                lines = content.read().decode().splitlines()
                settings = dict(line.split("=", 1) for line in lines if "=" in line)
                stack.settings = {key: value.strip("\"'") for key, value in settings.items()}
                found = ((key, stack.settings.get(key, "")) for key in SECRETS)
                stack.secrets = {key: value for key, value in found if value}
            else:
                text = content.read().decode(errors="replace")
                stack.files[str(path)] = texts[str(path.parent)][path.name] = text
    stack.volumes = {one["Name"]: one for one in json.loads(stack.files["volumes.json"] or "[]")}
    names = {}
    for key, text in texts["containers"].items():
        (facts,) = json.loads(text)
        names[facts["Image"].removeprefix("sha256:")] = facts["Config"]["Image"]
        processes = texts["processes"].get(key, "")
        stack.containers.append(Container(stack, facts, processes, logged.get(key, [])))
    for key, text in texts["images"].items():
        (facts,) = json.loads(text)
        history = texts["histories"][key]
        stack.images.append(Image(stack, names[key], facts, history, *updates_of(stack, key)))
    stack.containers.sort(key=lambda container: container.name)
    stack.images.sort(key=lambda image: image.name)
    return stack


def updates_of(stack: Stack, image: str) -> tuple[list[str], str]:
    """What Debian has that an image hasn't; and why nobody knows all of it, if so."""
    lines = [line.partition(" ") for line in stack.files["updates"].splitlines()]
    updates = [update for whose, _, update in lines if whose in {image, "all"}]
    # Said once an image is looked at, and in the end of all: who asks may be stopped half-way.
    done = {what for word, _, what in lines if word == "done"}
    if image in done:
        return updates, ""
    if "all" in done:
        return updates, "no list of Debian packages in it"
    error = re.search(r"^(?:E|docker): .*", stack.files["updates.error"], re.M)
    return updates, f"no answer from Debian ({error[0] if error else 'stopped half-way'})"


def judge(stack: Stack) -> tuple[Table, list[str], list[str]]:
    """A row a rule; a line for whatever breaks one; the rules that couldn't be applied, and why."""
    table = Table("", "rule", "looked at", "", box=None, header_style="bold")
    problems: list[str] = []
    unseen: list[str] = []

    def row(rule: Rule[T], subjects: list[T], looked_at: str) -> None:
        broken: list[str] = []
        reasons: dict[str, list[str]] = {}
        for subject in subjects:
            name = getattr(subject, "name", "stack")
            try:
                broken += [
                    f"{rule.number} {name}: "
                    f"expected {rule.what}, found {found}. Fix: {rule.fix}{where(subject)}"
                    for found in rule.wrong(subject)
                ]
            except NotLookedAt as reason:
                reasons.setdefault(str(reason), []).append(name)
        why = "; ".join(
            reason if len(names) == len(subjects) else f"{', '.join(names)}: {reason}"
            for reason, names in reasons.items()
        )
        verdict = "[yellow]not looked at[/]" if why else "[green]pass[/]"
        verdict = "[red]FAIL[/]" if broken else verdict
        table.add_row(rule.number, rule.what, escape(why or looked_at), verdict)
        problems.extend(broken)
        if why:
            unseen.append(f"{rule.number} ({why})")

    for rule in CONTAINERS:
        row(rule, stack.containers, f"{len(stack.containers)} containers")
    for image_rule in IMAGES:
        row(image_rule, stack.images, f"{len(stack.images)} images")
    for whole_rule in WHOLE:
        looked_at = who_was_asked(stack) if whole_rule.number == "OWASP 9" else ""
        row(whole_rule, [stack], looked_at)
    return table, problems, unseen


def where(subject: object) -> str:
    """Where a container's fix belongs."""
    if not isinstance(subject, Container):
        return ""
    if subject.is_flow:
        return " in worker/base-job-template.json or job_variables, then: make deploy"
    return THERE


def ask(login: str) -> dict[str, str]:
    """What the API says to whoever lacks something; nothing if it doesn't answer.

    Args:
        login: ``user:password``.
    """
    user, _, password = login.partition(":")
    with httpx.Client(timeout=10) as client:
        try:
            nobody = client.get(f"{API}/admin/version")
            client.auth = httpx.BasicAuth(user, password)
            untokened = client.post(f"{API}/flows/count", json={})
            site = client.get(
                f"{API}/admin/version", headers={"Origin": "https://elsewhere.example"}
            )
        except httpx.HTTPError:
            return {}
    return {
        "nobody": str(nobody.status_code),
        "without a token": str(untokened.status_code),
        "another site": site.headers.get("Access-Control-Allow-Origin", ""),
    }


def main() -> int:
    """Prints the table and what is wrong; returns the exit code."""
    stack = read(sys.stdin.buffer, sys.argv[1], sys.argv[2:])
    stack.answers = ask(stack.secrets.get("PREFECT_API_AUTH_STRING", ""))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    table, problems, unseen = judge(stack)
    console.print(table)
    for problem in problems:
        console.print(f"[red]✗[/] {escape(problem)}", soft_wrap=True)
    if not problems:
        more = f", {len(unseen)} not looked at: {'; '.join(unseen)}" if unseen else ""
        summary = escape(f"{len(table.rows)} rules, none broken{more}")
        console.print(f"[green]✓[/] {summary}", soft_wrap=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
