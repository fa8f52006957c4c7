"""audit.py: what it takes for a secret, a mount too many, a moving image, an old uv.lock; and what
it says of what it couldn't look at.
"""  # noqa: D205

import base64
import io
import json
import subprocess
import sys
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml

from ops import audit
from ops.audit import (
    CONTAINERS,
    MOUNTS,
    WHOLE,
    Container,
    Image,
    NotLookedAt,
    Stack,
    forms,
    secrets_of,
    unpinned,
    updates_of,
    who_was_asked,
)
from tests.advisories import advisory_database
from tests.stack import PROJECT

LOGIN = "admin:correct+horse/battery"
FOLDER = "/srv/stack"
# HostConfig of a container that breaks no rule.
GOOD: dict[str, Any] = {
    "CapDrop": ["ALL"],
    "SecurityOpt": ["no-new-privileges:true"],
    "MaskedPaths": ["/proc/kcore"],
    "ReadonlyRootfs": True,
    "Memory": 1,
    "CpuShares": 512,
    "PidsLimit": 64,
    "RestartPolicy": {"Name": "no"},
    "LogConfig": {"Type": "local", "Config": {}},
}
# What the API says to whoever lacks something.
LOCKED = {"nobody": "401", "without a token": "403", "another site": ""}


def stack(**files: str) -> Stack:
    found = Stack("test", [PurePosixPath(FOLDER)], {"PREFECT_API_AUTH_STRING": LOGIN})
    found.files = {name.replace("_", "."): text for name, text in files.items()}
    return found


def broken(number: str, stack: Stack) -> list[str]:
    """What the rules of this number that look at the whole find."""
    return [found for rule in WHOLE if rule.number == number for found in rule.wrong(stack)]


def container(stack: Stack, service: str = "flow", *mounts: str, **env: str) -> Container:
    """One of these mounts, as Compose writes them, and of this environment."""
    label = "com.docker.compose.service" if service != "flow" else "io.prefect.flow-run-id"
    found = []
    for source, target, mode in (mount.split(":") for mount in mounts):
        kind = "bind" if source.startswith("/") else "volume"
        where = source if kind == "bind" else f"/var/lib/docker/volumes/{source}/_data"
        found.append(
            {"Type": kind, "Name": source, "Source": where, "Destination": target}
            | {"RW": mode == "rw"}
        )
        if kind == "volume":
            stack.volumes.setdefault(source, {"Name": source, "Options": None})
    facts = {
        "Name": f"/{service}",
        "Config": {
            "User": "10001",
            "Labels": {label: service},
            "Env": [f"{key}={value}" for key, value in env.items()],
            "Image": "image:1",
        },
        "HostConfig": defaultdict(str, GOOD),
        "Mounts": found,
        "NetworkSettings": {"Networks": {}},
    }
    return Container(stack, facts, "", [])


@pytest.mark.parametrize(
    ("who", "said", "found"),
    [
        ("nobody", "200", ["status 200"]),
        ("without a token", "200", ["status 200"]),
        ("another site", "*", ["* allowed"]),
    ],
)
def test_an_api_that_lets_in_too_many(who: str, said: str, found: list[str]) -> None:
    flow = stack()
    container(flow)
    flow.answers = LOCKED | {who: said}
    rules = [rule for rule in WHOLE if "API" in rule.what or "CSRF" in rule.what]
    assert [one for rule in rules for one in rule.wrong(flow)] == found
    flow.answers = LOCKED
    assert [one for rule in rules for one in rule.wrong(flow)] == []
    flow.answers = {}
    for rule in rules:
        with pytest.raises(NotLookedAt):
            rule.wrong(flow)


def breaks(container: Container) -> set[str]:
    """The rules that a container breaks, but for those of what lasts."""
    found = {rule.number for rule in CONTAINERS if rule.wrong(container)}
    return found - {"CIS 5.15", "CIS 5.27"}


def test_the_table_is_what_the_compose_files_have() -> None:
    texts = [(PROJECT / name).read_text() for name in ("docker-compose.yml", "proxy/tls.yml")]
    ours, tls = (yaml.safe_load(text.replace("!reset", ""))["services"] for text in texts)
    mounts = {}
    for name, service in (ours | {"proxy": tls["proxy"]}).items():
        found = {f"./.secrets/{secret}:ro" for secret in service.get("secrets", [])}
        for volume in service.get("volumes", []):
            if volume.endswith("/docker.sock"):
                continue
            source, _, mode = (*volume.split(":"), "rw")[:3]
            found.add(f"{source}:{mode}")
        if found:
            mounts[name] = {one.replace("./.secrets/ca_bundle", "CA_BUNDLE") for one in found}
    assert mounts == MOUNTS


@pytest.mark.parametrize(
    ("service", "mount", "numbers"),
    [
        ("server", f"{FOLDER}/.secrets/encryption_key:/k:ro", set()),
        ("worker", f"{FOLDER}/.secrets/encryption_key:/k:ro", {"CIS 5.6"}),
        ("upstream", f"{FOLDER}/.secrets/encryption_key:/k:ro", {"CIS 5.6"}),
        ("server", f"{FOLDER}/.secrets/encryption_key:/k:rw", {"CIS 5.6"}),
        ("server", f"{FOLDER}/.secrets:/k:ro", {"CIS 5.6"}),
        ("flow", f"{FOLDER}/.secrets/api_auth_string:/k:ro", {"CIS 5.6"}),
        ("backup", f"{FOLDER}:/project:ro", set()),
        ("backup", f"/host_mnt{FOLDER}:/project:ro", set()),
        ("backup", f"{FOLDER}:/project:rw", {"CIS 5.6"}),
        ("backup", f"{FOLDER}/backups:/b:rw", set()),
        ("upstream", f"{FOLDER}/backups:/b:ro", {"CIS 5.6"}),
        ("upstream", f"{FOLDER}/.env.before-restore:/e:ro", {"CIS 5.6"}),
        ("new", f"{FOLDER}/flows:/f:ro", {"CIS 5.6"}),
        ("proxy", "/etc/ssl/ca.crt:/run/secrets/ca_bundle:ro", set()),
        ("proxy", "/dev/null:/run/secrets/ca_bundle:ro", set()),
        ("upstream", "/etc/ssl/ca.crt:/run/secrets/ca_bundle:ro", {"CIS 5.6"}),
        ("worker", "test_gate:/run/gate:rw", set()),
        ("upstream", "test_gate:/run/gate:ro", {"OWASP 8"}),
        ("fork-worker", "test_data:/data:rw", set()),
        ("backup", "test_data:/data:ro", set()),
        ("backup", "test_data:/data:rw", {"OWASP 8"}),
        ("fork-worker", "data:/data:rw", {"OWASP 8"}),
        ("fork-worker", "other-test_data:/data:rw", {"OWASP 8"}),
        ("new", "test_data:/data:ro", {"OWASP 8"}),
        ("flow", "test_data:/data:rw", set()),
        ("flow", "models:/m:rw", set()),
        ("fork-worker", "models:/m:rw", {"OWASP 8"}),
        ("flow", "test_postgres-data:/data:ro", {"OWASP 8"}),
    ],
)
def test_a_mount_that_the_table_does_not_have(service: str, mount: str, numbers: set[str]) -> None:
    found = stack()
    found.settings = {"FLOW_VOLUMES": "models, more", "CA_BUNDLE": "/etc/ssl/ca.crt"}
    assert breaks(container(found, service, mount)) == numbers


@pytest.mark.parametrize(
    ("options", "shows"),
    [
        (None, False),
        ({"type": "tmpfs", "device": "tmpfs", "o": "size=1m,mode=700"}, False),
        ({"type": "nfs", "device": ":/export", "o": "addr=192.0.2.1,rw"}, False),
        ({"type": "none", "device": "/", "o": "bind"}, True),
        ({"type": "tmpfs", "device": "/", "o": "ro,rbind"}, True),
        ({"type": "ext4", "device": "/dev/sda1"}, True),
        ({"type": "overlay", "device": "overlay", "o": "lowerdir=/,upperdir=/a,workdir=/b"}, True),
    ],
)
def test_a_volume_that_is_a_folder_of_the_host(options: dict[str, str], shows: bool) -> None:
    found = stack()
    found.volumes["test_data"] = {"Name": "test_data", "Options": options}
    assert breaks(container(found, "flow", "test_data:/data:rw")) == (
        {"CIS 5.6"} if shows else set()
    )


def test_a_volume_that_nobody_knows_does_not_pass() -> None:
    found = stack()
    flow = container(found, "flow", "test_data:/data:rw")
    found.volumes.clear()
    with pytest.raises(NotLookedAt, match="test_data"):
        breaks(flow)
    assert breaks(container(found, "new", f"{FOLDER}:/x:ro")) == {"CIS 5.6"}


@pytest.mark.parametrize(
    ("said", "ports", "found"),
    [
        ("loaded\n", "", []),
        ("a warning of Compose's\nloaded\n", "5432", []),
        ("loaded\n", "all", ["HOST_PORTS=all"]),
        ("", "", ["no table of the firewall's in the kernel"]),
        ("service is not running\n", "", ["service is not running"]),
    ],
)
def test_ports_of_this_machine_that_are_open(said: str, ports: str, found: list[str]) -> None:
    whole = stack(filter=said)
    whole.files["networks.json"] = json.dumps([{"Name": "test_backend", "Internal": True}])
    whole.containers = [container(whole, "firewall", HOST_PORTS=ports)]
    assert broken("OWASP 5", whole) == found


def whole_stack(updates: str) -> Stack:
    """One that breaks no rule, with two images, of which Debian's updates are these."""
    found = stack(uv_lock=f'upload-time = "{datetime.now(UTC).isoformat()}"', filter="loaded")
    found.files |= {"modes": "", "advisories.json": "", "advisories.error": "no such host"}
    found.files["run"] = "flow\n"  # as the container's label has it
    found.files |= {"updates": updates, "updates.error": "Pulling\nE: no mirror\nE: more\n"}
    found.files["networks.json"] = json.dumps([{"Name": "test_backend", "Internal": True}])
    found.containers = [container(found)]
    facts = {"Config": {"Labels": None}}
    found.images = [
        Image(found, f"{name}:1", facts, "", *updates_of(found, name)) for name in ("one", "two")
    ]
    return found


@pytest.mark.parametrize(
    ("updates", "code", "told"),
    [
        ("done one\ndone two\ndone all\n", 0, ""),
        ("", 0, "CIS 4.4 (no answer from Debian (E: no mirror)); "),
        ("done one\ndone t", 0, "CIS 4.4 (two:1: no answer from Debian (E: no mirror)); "),
        ("done one\ndone all\n", 0, "CIS 4.4 (two:1: no list of Debian packages in it); "),
        ("two libc6 [1] (2", 1, ""),
        ("all no security suite in the sources\ndone one\ndone two\ndone all\n", 1, ""),
    ],
)
def test_what_was_not_looked_at_does_not_pass(
    updates: str,
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(audit, "read", lambda *_: whole_stack(updates))
    monkeypatch.setattr(audit, "ask", lambda _: LOCKED)
    monkeypatch.setattr(sys, "argv", ["audit", "test", FOLDER])
    assert audit.main() == code
    *table, last = capsys.readouterr().out.splitlines()
    (row,) = [line.strip() for line in table if line.strip().startswith("CIS 4.4")]
    if code:
        assert last.startswith("✗ CIS 4.4 two:1: expected none of Debian's updates amiss, found ")
        assert row.endswith("FAIL")
        return
    assert row.endswith("not looked at" if told else "pass")
    assert f"rules, none broken, {2 if told else 1} not looked at: {told}OWASP 9 (no adv" in last


def test_another_run_s_container_doesn_t_do() -> None:
    found = whole_stack("")
    (rule,) = [rule for rule in WHOLE if rule.what == "a flow container looked at"]
    assert rule.wrong(found) == []
    found.files["run"] = "another\n"
    assert rule.wrong(found) == ["none"]


def test_half_an_answer_is_no_answer() -> None:
    found = whole_stack("")
    found.files["advisories.json"] = '{"vulnerabilities": ['
    with pytest.raises(NotLookedAt, match="no advisory database"):
        broken("OWASP 9", found)
    found.files["networks.json"] = "[]"
    with pytest.raises(NotLookedAt, match="no network test_backend"):
        broken("OWASP 5", found)


@pytest.mark.parametrize(
    "text",
    [
        LOGIN,
        "password=correct+horse/battery",
        "Authorization: Basic " + base64.b64encode(LOGIN.encode()).decode(),
        "http://admin:correct%2Bhorse%2Fbattery@server",
    ],
)
def test_a_secret_is_found_however_it_is_written(text: str) -> None:
    assert stack().secrets_in(f"x {text} y") == ["PREFECT_API_AUTH_STRING"]
    assert secrets_of(stack(), io.BytesIO(f"a\n{text}\n".encode())) == ["PREFECT_API_AUTH_STRING"]


def test_what_is_no_secret_is_not_found() -> None:
    assert stack().secrets_in("admin:correct+horse admin battery") == []
    assert secrets_of(stack(), io.BytesIO(b"admin:correct+horse\n")) == []
    assert secrets_of(Stack("test", []), io.BytesIO(b"\nanything\n")) == []
    assert forms("short") == set()


@pytest.mark.parametrize(
    ("image", "moves"),
    [
        ("debian:trixie-slim", False),
        ("debian", True),
        ("debian:latest", True),
        ("registry:5000/debian", True),
        ("registry:5000/debian:13", False),
        ("debian@sha256:0123", False),
    ],
)
def test_an_image_that_may_be_another_one_tomorrow(image: str, moves: bool) -> None:
    assert bool(unpinned(image)) == moves
    dockerfile = f"FROM --platform=linux/amd64 {image} AS base\nFROM base\nFROM scratch\n"
    assert broken("CIS 4.2", stack(Dockerfile=dockerfile)) == [f"Dockerfile: {image}"] * moves


def test_a_file_that_others_can_read() -> None:
    found = stack(
        modes="-rw-r----- 1 me me 9 Jan 1 12:00 .env\ndrwx------. 2 me me 9 Jan 1 .secrets\n"
    )
    assert ".env: -rw-r-----" in broken("OWASP 12", found)
    assert not [line for line in broken("OWASP 12", found) if ".secrets" in line]


@pytest.mark.parametrize(("days", "old"), [(5, False), (91, True)])
def test_where_no_database_answers_the_age_of_uv_lock_counts(days: int, old: bool) -> None:
    then = (datetime.now(UTC) - timedelta(days=days, hours=1)).isoformat()
    found = stack(uv_lock=f'upload-time = "2020-01-01T00:00:00Z"\nupload-time = "{then}"\n')
    found.files["advisories.error"] = "error: …\n  cause: no such host\n"
    if old:
        assert broken("OWASP 9", found) == [f"uv.lock, {days} days old"]
    else:
        with pytest.raises(NotLookedAt, match="no such host"):
            broken("OWASP 9", found)
    assert who_was_asked(found) == (
        "no advisory database reachable (no such host); "
        f"uv.lock is {days} days old, by the newest package in it"
    )


@pytest.mark.parametrize("package", ["requests", ""])
def test_what_is_known_against_a_package_is_told(package: str) -> None:
    with advisory_database(package) as url:
        options = ["--preview-features=audit-command,json-output", "--output-format=json"]
        done = subprocess.run(
            [PROJECT / ".venv/bin/uv", "audit", "--frozen", *options, f"--service-url={url}"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
        )
    found = stack()
    found.files["advisories.json"] = done.stdout
    assert "asked of a database" in who_was_asked(found), done.stderr
    problems = broken("OWASP 9", found)
    assert len(problems) == bool(package)
    assert not package or problems[0].endswith("TEST-1, fixed in 99.9")
