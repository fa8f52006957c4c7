"""audit.py: what it takes for a secret, a moving image, an old or vulnerable uv.lock."""

import base64
import io
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath

import pytest

from ops.audit import WHOLE, Stack, forms, secrets_of, unpinned, who_was_asked
from tests.advisories import advisory_database
from tests.stack import PROJECT

LOGIN = "admin:correct+horse/battery"


def stack(**files: str) -> Stack:
    found = Stack("test", [PurePosixPath("/srv/stack")], {"PREFECT_API_AUTH_STRING": LOGIN})
    found.files = {name.replace("_", "."): text for name, text in files.items()}
    return found


def broken(number: str, stack: Stack) -> list[str]:
    """What the rules of this number that look at the whole find."""
    return [found for rule in WHOLE if rule.number == number for found in rule.wrong(stack)]


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
    assert bool(broken("OWASP 9", found)) == old
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
