"""What a flow container may be. Nothing of a request reaches the engine: a new body is made.

The tables `TOP` and `HOST` name every field that a request may have, spelled just so, and what may
be in it. A field that isn't there is refused, whatever its value: the engine reads keys without
regard to case, and takes the last of two.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

MAX_BODY = 256 * 1024
USER = "10001:10001"  # as in our images
RUN_LABEL = "io.prefect.flow-run-id"
GATE_LABEL = "prefect-stack.gate"  # what the gate has made: its value, the flows' network
OWN_VOLUMES = ("postgres-data", "gate", "server", "proxy")  # of the stack, closed to flows
# The image has them of the service that it was built for, which Compose would take this to be.
COMPOSE_LABELS = dict.fromkeys(("com.docker.compose.project", "com.docker.compose.service"), "")
MEMORY, LEAST_MEMORY = 1 << 30, 6 << 20  # with less, the engine makes no container
PIDS, MAX_PIDS = 512, 4096
# A quarter of the server's (docker-compose.yml): a flow that loads must not delay one that runs.
CPU_SHARES = 512
OOM_SCORE = 500  # where the machine's memory runs out, a flow goes before Postgres or sshd does
SAME = ("Image", "Cmd", "Entrypoint", "Env", "WorkingDir")  # what is passed on as it is
TMPFS = {"/tmp": "mode=1777,size=256m"}  # noqa: S108  # in the container
BYTES = "bytes from {} to {}"
UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class Refused(Exception):
    """What isn't allowed, in words for whoever started the flow run."""

    def __init__(self, what: str, expected: str, found: object) -> None:
        """Takes what was wrong, what would be right, and what was there."""
        shown = found if isinstance(found, str) else json.dumps(found, default=str)
        super().__init__(f"{what}: expected {expected}, found {shown[:200]!a}")


@dataclass(frozen=True)
class Policy:
    """A stack's own part of the rules.

    Attributes:
        images: ``name:tag``, or ``name`` for any tag of it.
        volumes: Names of volumes that may be mounted.
        labels: Names of labels that may be set besides Prefect's own.
        network: The one that flow containers are on.
        max_memory: In bytes.
        cpus: Of which a container gets so many at most.
        cgroup: The control group that all of them are put into; empty for the engine's own.
    """

    images: tuple[str, ...]
    volumes: tuple[str, ...]
    labels: tuple[str, ...]
    network: str
    max_memory: int
    cpus: float
    cgroup: str = ""

    @classmethod
    def read(cls, env: Mapping[str, str]) -> "Policy":
        """From FLOW_IMAGES, FLOW_VOLUMES, FLOWS_NETWORK, FLOW_MAX_MEMORY (bytes, or with k, m or g)
        FLOW_CPUS, perhaps FLOW_LABELS and FLOW_CGROUP_PARENT; a list's separators: blanks, commas.

        Raises:
            ValueError: One of them is missing or makes no sense.
        """  # noqa: D205
        images, volumes = (
            tuple(re.split(r"[\s,]+", env[key].strip())) for key in ("FLOW_IMAGES", "FLOW_VOLUMES")
        )
        for key, names, pattern in (
            ("FLOW_IMAGES", images, IMAGE),
            ("FLOW_VOLUMES", volumes, VOLUME),
        ):
            if wrong := [name for name in names if not pattern.fullmatch(name)]:
                raise ValueError(f"{key}: expected names, found {wrong}")
        project = env["FLOWS_NETWORK"].removesuffix("_flows")
        if own := {f"{project}_{name}" for name in OWN_VOLUMES} & {*volumes}:
            raise ValueError(f"FLOW_VOLUMES: expected none of the stack's own, found {own}")
        size = re.fullmatch(r"(\d+)([kmg]?)b?", env["FLOW_MAX_MEMORY"].lower())
        if not size:
            raise ValueError(f"FLOW_MAX_MEMORY: expected 4g, say, found {env['FLOW_MAX_MEMORY']}")
        cpus = float(env["FLOW_CPUS"])
        if not 0.01 <= cpus <= 1024:
            raise ValueError(f"FLOW_CPUS: expected a number of CPUs, found {env['FLOW_CPUS']}")
        memory = int(size[1]) * UNITS.get(size[2], 1)
        cgroup = env.get("FLOW_CGROUP_PARENT", "")
        labels = tuple(re.findall(r"[^\s,]+", env.get("FLOW_LABELS", "")))
        return cls(images, volumes, labels, env["FLOWS_NETWORK"], memory, cpus, cgroup)

    def check_image(self, image: str) -> None:
        """Refuses an image that isn't on the list, or has neither tag nor digest."""
        name = name_of(image)
        listed = image in self.images or name in self.images
        if not (listed and IMAGE.fullmatch(image) and image != name):
            expected = f"one that is on FLOW_IMAGES ({', '.join(self.images)}), with its tag"
            raise Refused("image", expected, image)

    def registries(self) -> set[str]:
        """The hosts of the listed images that have one in their name."""
        hosts = (name.split("/")[0] for name in self.images if "/" in name)
        return {host for host in hosts if "." in host or ":" in host or host == "localhost"}


# Without a tag it would be `latest`, whatever that is by then.
IMAGE = re.compile(
    r"([a-z0-9.-]+:\d+/)?[a-z0-9][a-z0-9._/-]*(:\w[\w.-]*)?(@sha256:[0-9a-f]{64})?", re.A
)
VOLUME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", re.A)
PATH = re.compile(r"(/[A-Za-z0-9_.@+-]+)+", re.A)
# What Docker itself mounts into, and what may be a link in the image: nothing shared belongs there.
SYSTEM = {
    *("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "root", "run"),
    *("sbin", "sys", "usr", "var"),
}
TMPFS_OPTION = re.compile(
    r"rw|noexec|nosuid|nodev|mode=[0-7]{3,4}|(size|uid|gid)=\d{1,12}[kmg]?", re.A
)
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,200}", re.A)


def name_of(image: str) -> str:
    """An image's name without tag and digest."""
    name = image.split("@")[0]
    return name.rsplit(":", 1)[0] if ":" in name.rsplit("/", 1)[-1] else name


def parse(body: bytes) -> dict[str, Any]:
    """A JSON object, read as strictly as there is.

    Raises:
        Refused: It is none, has a key twice, or what isn't UTF-8.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise Refused("the request", "every key once", [key for key, _ in pairs])
        return found

    def constant(text: str) -> Any:
        raise Refused("the request", "JSON", text)

    if len(body) > MAX_BODY:
        raise Refused("the request", f"{MAX_BODY} bytes or fewer", len(body))
    try:
        found = json.loads(body.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
        json.dumps(found, ensure_ascii=False).encode()  # no half characters
    except (ValueError, RecursionError) as error:
        raise Refused("the request", "JSON", str(error)) from None
    if type(found) is not dict:
        raise Refused("the request", "a JSON object", found)
    return found


def flow_container(asked: dict[str, Any], policy: Policy) -> dict[str, Any]:
    """The body with which the engine makes what was asked for.

    Raises:
        Refused: Something in it isn't allowed.
    """
    asked = dict(asked)
    host = asked.pop("HostConfig", None) or {}
    found = _checked("", asked, TOP, policy)
    limits = _checked("HostConfig.", _dict("HostConfig", host), HOST, policy)
    if "Image" not in found:
        raise Refused("image", "one", "none")
    run = found.get("Labels", {}).get(RUN_LABEL, "")
    try:
        UUID(run)
    except ValueError:
        raise Refused(f"label {RUN_LABEL}", "a flow run's id", run) from None
    binds, tmpfs = limits.get("Binds", []), limits.get("Tmpfs", TMPFS)
    targets = [bind.split(":")[1] for bind in binds]
    _apart([*targets, *tmpfs])
    for folder in asked.get("Volumes") or {}:
        if folder not in targets:
            raise Refused("volumes", "name:/path", folder)
    memory = limits.get("Memory", min(MEMORY, policy.max_memory))
    if limits.get("MemorySwap", memory) > max(memory, MEMORY):
        raise Refused("memswap_limit", "no more than mem_limit", limits["MemorySwap"])
    return {
        **{key: found[key] for key in SAME if key in found},
        "User": found.get("User", USER),
        "Labels": {**COMPOSE_LABELS, **found["Labels"], GATE_LABEL: policy.network},
        "HostConfig": {
            "NetworkMode": policy.network,
            "Binds": binds,
            "Memory": memory,
            "MemorySwap": memory,
            "PidsLimit": limits.get("PidsLimit", PIDS),
            "CpuPeriod": 100_000,
            "CpuShares": CPU_SHARES,
            "CpuQuota": math.ceil(100_000 * policy.cpus),
            "CgroupParent": policy.cgroup,
            "OomScoreAdj": OOM_SCORE,
            "Tmpfs": tmpfs,
            "ReadonlyRootfs": True,
            "Init": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
        },
        "NetworkingConfig": {"EndpointsConfig": {policy.network: {}}},
    }


def container_name(asked: str) -> str:
    """What a flow container is called: on the network a name is an address.

    A run called `server` must not be taken for the server.
    """
    if not NAME.fullmatch(asked):
        raise Refused("name", "letters, digits and _ . -", asked)
    return f"flow-{asked}"


# ── Rules: each takes what was asked for and gives what the engine is told, or refuses ──

Rule = Callable[[str, Any, Policy], Any]


def _checked(
    where: str, asked: dict[str, Any], rules: dict[str, Rule], policy: Policy
) -> dict[str, Any]:
    """What was asked for of these fields; what says nothing is left out."""
    for key in asked:
        if key not in rules:
            raise Refused(f"{where}{key}", "it not to be set", asked[key])
    return {
        key: rules[key](where + key, value, policy)
        for key, value in asked.items()
        if not _says_nothing(value)
    }


def _says_nothing(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _dict(what: str, value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise Refused(what, "an object", value)
    return value


def _text(what: str, value: Any) -> str:
    if type(value) is not str or "\0" in value:
        raise Refused(what, "text", value)
    return value


def _texts(what: str, value: Any, _: Policy) -> list[str]:
    if type(value) is not list:
        raise Refused(what, "a list of texts", value)
    return [_text(what, item) for item in value]


def _unset(what: str, value: Any, _: Policy) -> None:
    raise Refused(what, "it not to be set", value)


def _flag(what: str, value: Any, _: Policy) -> bool:
    if value is not True:
        raise Refused(what, "true", value)
    return True


def _only(*allowed: str) -> Rule:
    def rule(what: str, value: Any, policy: Policy) -> list[str]:
        found = _texts(what, value, policy)
        if wrong := [item for item in found if item not in allowed]:
            raise Refused(what, f"nothing but {', '.join(allowed)}", ", ".join(wrong))
        return found

    return rule


def _image(what: str, value: Any, policy: Policy) -> str:
    policy.check_image(image := _text(what, value))
    return image


def _env(what: str, value: Any, policy: Policy) -> list[str]:
    found = _texts(what, value, policy)
    if wrong := [item for item in found if not re.match(r"[^=]+(=|\Z)", item)]:
        raise Refused(what, "NAME=value", wrong[0])
    return found


def _labels(what: str, value: Any, policy: Policy) -> dict[str, str]:
    found = {_text(what, key): _text(what, text) for key, text in _dict(what, value).items()}
    # Others obey labels: Compose takes a container for its own, a proxy sends it a site's requests.
    own = re.compile(r"io\.prefect\.[\w.-]+", re.A)
    if wrong := [key for key in found if not own.fullmatch(key) and key not in policy.labels]:
        raise Refused("labels", "one that is on FLOW_LABELS", wrong[0])
    return found


def _user(what: str, value: Any, _: Policy) -> str:
    user = _text(what, value)
    # By number: of a name, the image decides whether it is root.
    if not re.fullmatch(r"[1-9]\d{0,8}(:[1-9]\d{0,8})?", user, re.A):
        raise Refused("user", "numbers of a user and a group that aren't root's", user)
    # Without a group, Docker may give it root's.
    return user if ":" in user else f"{user}:{user}"


def _path(what: str, value: Any) -> str:
    path = _text(what, value)
    parts = path.split("/")
    if not PATH.fullmatch(path) or {".", ".."} & {*parts} or parts[1] in ("proc", "sys", "dev"):
        raise Refused(what, "the plain path of a folder, not of the system's own", path)
    return path


def _folder(what: str, value: Any, _: Policy) -> str:
    return "/" if value == "/" else _path(what, value)


def _target(what: str, value: Any) -> str:
    path = _path(what, value)
    if path.split("/")[1] in SYSTEM:
        raise Refused(what, "a path outside the system's, such as /data/… or /mnt/…", path)
    return path


def _binds(what: str, value: Any, policy: Policy) -> list[str]:
    found = []
    for bind in _texts("volumes", value, policy):
        name, _, rest = bind.partition(":")
        path, _, mode = rest.partition(":")
        if name not in policy.volumes:
            raise Refused(
                "volumes", f"one that is on FLOW_VOLUMES ({', '.join(policy.volumes)})", bind
            )
        if mode not in ("", "rw", "ro"):
            raise Refused("volumes", "rw or ro after the path", bind)
        found.append(f"{name}:{_target('volumes', path)}:{mode or 'rw'}")
    return found


def _apart(paths: list[str]) -> None:
    """Refuses a mount in another: what flows share must not decide where it ends up."""
    for path in paths:
        if [other for other in paths if f"{path}/".startswith(f"{other}/")] != [path]:
            raise Refused("volumes, tmpfs", "paths that aren't within each other", path)


def _mounted(what: str, value: Any, policy: Policy) -> None:
    for path, options in _dict(what, value).items():
        _path(what, path)
        if options not in ({}, None):
            raise Refused(what, "nothing but paths", options)


def _amount(low: int, high: Callable[[Policy], int], name: str, expected: str) -> Rule:
    def rule(what: str, value: Any, policy: Policy) -> int:
        if type(value) is not int or not low <= value <= high(policy):
            raise Refused(name, expected.format(low, high(policy)), value)
        return value

    return rule


def _tmpfs(what: str, value: Any, _: Policy) -> dict[str, str]:
    found = {}
    for path, options in _dict("tmpfs", value).items():
        asked = _text("tmpfs", options).split(",") if options else []
        if wrong := [option for option in asked if not TMPFS_OPTION.fullmatch(option)]:
            expected = "mode=, size=, uid=, gid=, noexec, nosuid or nodev"
            raise Refused("tmpfs", expected, wrong[0])
        found[_target("tmpfs", path)] = ",".join(asked)
    return found


def _log(what: str, value: Any, _: Policy) -> None:
    known = {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
    if value != known:
        raise Refused(what, json.dumps(known), value)


def _network(what: str, value: Any, policy: Policy) -> str:
    if value != policy.network:
        raise Refused("networks", f"none but {policy.network}, as by default", value)
    return policy.network


def _networks(what: str, value: Any, policy: Policy) -> None:
    found = _dict(what, value)
    if "EndpointsConfig" in found:
        if len(found) > 1:
            raise Refused(what, "EndpointsConfig alone", list(found))
        found = _dict(what, found["EndpointsConfig"] or {})
    for name, options in found.items():
        _network(what, name, policy)
        if options not in (None, {}):
            raise Refused(what, "nothing but the network's name", options)


# Docker's client sends the fields of `_unset`, too, with nothing in them.
TOP: dict[str, Rule] = {
    "Image": _image,
    "Cmd": _texts,
    "Entrypoint": _texts,
    "Env": _env,
    "WorkingDir": _folder,
    "User": _user,
    "Labels": _labels,
    "Volumes": _mounted,
    "NetworkingConfig": _networks,
    "AttachStdout": _flag,
    "AttachStderr": _flag,
    "AttachStdin": _unset,
    "Domainname": _unset,
    "ExposedPorts": _unset,
    "Healthcheck": _unset,
    "Hostname": _unset,
    "MacAddress": _unset,
    "NetworkDisabled": _unset,
    "OpenStdin": _unset,
    "Runtime": _unset,
    "StdinOnce": _unset,
    "StopSignal": _unset,
    "StopTimeout": _unset,
    "Tty": _unset,
}
HOST: dict[str, Rule] = {
    "NetworkMode": _network,
    "Binds": _binds,
    "Memory": _amount(
        LEAST_MEMORY, lambda policy: policy.max_memory, "mem_limit", f"{BYTES} (FLOW_MAX_MEMORY)"
    ),
    "MemorySwap": _amount(
        LEAST_MEMORY, lambda policy: max(policy.max_memory, MEMORY), "memswap_limit", BYTES
    ),
    "PidsLimit": _amount(1, lambda _: MAX_PIDS, "pids_limit", "a number from {} to {}"),
    "Tmpfs": _tmpfs,
    "ReadonlyRootfs": _flag,
    "Init": _flag,
    "CapDrop": _only("ALL"),
    "SecurityOpt": _only("no-new-privileges:true", "no-new-privileges"),
    "LogConfig": _log,
}
