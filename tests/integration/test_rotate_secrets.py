"""`make rotate-secrets`: new secrets, the same data; interrupted anywhere, old ones that work."""

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from requests.auth import HTTPBasicAuth

from tests.stack import DAILY, Stack, eventually, settings_of

SECRETS = {"PREFECT_API_AUTH_STRING", "POSTGRES_PASSWORD", "PREFECT_SERVER_ENCRYPTION_KEY"}
MESSAGE = "told to nobody but whoever asks with the login"
pytestmark = pytest.mark.timeout(400)


def settings(stack: Stack) -> dict[str, str]:
    return settings_of(stack.folder / ".env")


def accepts(stack: Stack, login: str) -> bool:
    auth = HTTPBasicAuth(*login.split(":", 1))
    address = f"http://127.0.0.1:{stack.port}/api/admin/version"
    return requests.get(address, auth=auth, timeout=10).status_code == 200


@pytest.fixture(scope="module")
def block(stack: Stack, first_run: dict[str, Any]) -> Iterator[str]:
    """A Secret block's id."""
    secret = stack.api("GET", "/block_types/slug/secret")["id"]
    schemas = {"block_schemas": {"block_type_id": {"any_": [secret]}}}
    body = {
        "name": f"rotated-{uuid.uuid4().hex[:6]}",
        "data": {"value": MESSAGE},
        "block_type_id": secret,
        "block_schema_id": stack.api("POST", "/block_schemas/filter", schemas)[0]["id"],
    }
    created = str(stack.api("POST", "/block_documents/", body)["id"])
    yield created
    stack.api("DELETE", f"/block_documents/{created}")


def works(stack: Stack, block: str) -> None:
    """Everything is right, and what was encrypted can be read."""
    assert "everything is right" in stack.make("status")
    found = stack.api("GET", f"/block_documents/{block}?include_secrets=true")
    assert found["data"]["value"] == MESSAGE
    assert stack.sql("SELECT count(*) FROM flow_run")[0][0] > 0  # by TCP, with the password
    left = {path.name for path in stack.folder.glob(".env.*")}
    assert left - {".env.before-restore"} == {".env.example"}


def test_everything_is_new_and_works(stack: Stack, block: str) -> None:
    before = settings(stack)
    runs = {run["id"] for run in stack.runs(DAILY)}
    encrypted = stack.sql(f"SELECT data FROM block_document WHERE id = '{block}'")  # noqa: S608
    output = stack.make("rotate-secrets")
    after = settings(stack)
    assert {key for key in after if after[key] != before[key]} == SECRETS
    assert before.keys() == after.keys()
    users = {each["PREFECT_API_AUTH_STRING"].split(":")[0] for each in (before, after)}
    assert len(users) == 1, users
    assert (stack.folder / ".env").stat().st_mode & 0o777 == 0o600
    assert not [key for key in SECRETS if before[key] in output or after[key] in output]
    assert accepts(stack, after["PREFECT_API_AUTH_STRING"])
    assert not accepts(stack, before["PREFECT_API_AUTH_STRING"])
    assert stack.sql(f"SELECT data FROM block_document WHERE id = '{block}'") != encrypted  # noqa: S608
    assert runs < {run["id"] for run in stack.runs(DAILY)}, "one more, which verified"
    works(stack, block)


@contextlib.contextmanager
def rotation(stack: Stack, errors: int = subprocess.STDOUT) -> Iterator["subprocess.Popen[bytes]"]:
    """`make rotate-secrets`, at work."""
    with open(stack.folder / "rotation.log", "wb") as log:
        process = subprocess.Popen(
            ["make", "rotate-secrets"],
            cwd=stack.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=errors,
            start_new_session=True,
        )
        yield process
        process.wait(300)


@pytest.mark.parametrize("lost", [False, True], ids=["Ctrl-C", "a lost terminal"])
def test_interrupted_when_all_is_changed_it_leads_back(
    stack: Stack, block: str, lost: bool
) -> None:
    before, log = settings(stack), stack.folder / "rotation.log"
    terminal, inside = os.openpty()
    with rotation(stack, inside if lost else subprocess.STDOUT) as process:
        os.close(inside)

        def changed() -> bool | None:
            assert process.poll() is None, log.read_text()
            return settings(stack) != before or None

        eventually(".env with the new secrets", 150, changed)
        os.close(terminal)
        os.killpg(process.pid, signal.SIGHUP if lost else signal.SIGINT)
        assert process.wait(200) != 0
    assert "==> Rotated" not in log.read_text()
    assert lost or "The stack is as it was, with the old secrets." in log.read_text()
    assert settings(stack) == before
    works(stack, block)


def test_a_power_cut_half_way_is_mended_by_up(stack: Stack, block: str) -> None:
    """At the worst of moments: the database has the new ones, and .env, as good as always, not."""
    before = settings(stack)
    with (
        rotation(stack) as process,
        stack.database() as database,
        database.cursor() as cursor,
    ):
        database.autocommit = True

        def password() -> Any:
            cursor.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'prefect'")
            return cursor.fetchone()

        known, deadline = password(), time.monotonic() + 150
        while password() == known:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    assert "==> Verifying" not in (stack.folder / "rotation.log").read_text()
    finish = ("ops/rotate-secrets.sh", "finish")  # which is a step of `make up`
    assert stack.run(*finish).returncode == 0
    assert stack.sql("SELECT count(*) FROM flow_run")[0][0] > 0
    # Another one, while the new ones were being written.
    text = (stack.folder / ".env").read_text()
    for command, written in ((finish, ""), (("make", "up"), text[: text.index("_KEY=") + 20])):
        for name in (".env.rotating", ".env.rotating.new", ".env.before-rotation"):
            (stack.folder / name).write_text(written)
        done = stack.run(*command)
        assert done.returncode == 0, done.stdout
        assert ".env.rotating was cut off" in done.stdout
        assert not (stack.folder / ".env.rotating").exists()
    assert settings(stack).keys() == before.keys()
    works(stack, block)
