"""audit.py: what it takes for a secret, a moving image, an old uv.lock; and what
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

from ops import audit
from ops.audit import (
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


def stack(**files: str) -> Stack:
    found = Stack("test", [PurePosixPath(FOLDER)], {"PREFECT_API_AUTH_STRING": LOGIN})
    found.files = {name.replace("_", "."): text for name, text in files.items()}
    return found


def broken(number: str, stack: Stack) -> list[str]:
    """What the rules of this number that look at the whole find."""
    return [found for rule in WHOLE if rule.number == number for found in rule.wrong(stack)]


def container(stack: Stack, service: str = "flow", **env: str) -> Container:
    """One of this environment."""
    label = "com.docker.compose.service" if service != "flow" else "io.prefect.flow-run-id"
    facts = {
        "Name": f"/{service}",
        "Config": {
            "User": "10001",
            "Labels": {label: service},
            "Env": [f"{key}={value}" for key, value in env.items()],
            "Image": "image:1",
        },
        "HostConfig": defaultdict(str, GOOD),
        "Mounts": [],
        "NetworkSettings": {"Networks": {}},
    }
    return Container(stack, facts, "", [])


def whole_stack(updates: str) -> Stack:
    """One that breaks no rule, with two images, of which Debian's updates are these."""
    found = stack(uv_lock=f'upload-time = "{datetime.now(UTC).isoformat()}"')
    found.files |= {"modes": "", "advisories.json": "", "advisories.error": "no such host"}
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
