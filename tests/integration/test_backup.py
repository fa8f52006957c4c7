"""Upgrade, backup, restore: all is there afterwards, nothing runs twice, no failure does harm."""

import contextlib
import hashlib
import io
import os
import signal
import subprocess
import tarfile
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.stack import ACTIVITY_URL, DAILY, Stack, docker, eventually, left_behind

TICK = "cat-fact/on-demand"
PASSPHRASE = {"BACKUP_PASSPHRASE": "correct horse, battery 'staple'"}
ALERTS = {"ALERT_WEBHOOK_URL": "http://upstream:8000/api/activity"}  # so that there are automations
PARTS = ("manifest", "env", "prefect.yaml", "database.dump", "data.tar")
RUNS = 200
# The last one whose migrations this version's Prefect adds to, and what it runs with.
OLD = "prefect==3.8.8 'fastapi<0.150' 'sqlalchemy<2.1'"
# After the server's own image, so that all but the packages of then is the same, and cached.
DOCKERFILE = f"""
FROM current
USER root
RUN --mount=type=bind,from=build,source=/opt/venv.uv,target=/opt/venv.uv \\
    --mount=type=secret,id=ca_bundle --mount=type=cache,target=/root/.cache \\
    if [ -s /run/secrets/ca_bundle ]; then export SSL_CERT_FILE=/run/secrets/ca_bundle; fi; \\
    /opt/venv.uv/bin/uv pip install --quiet --compile-bytecode --python /opt/venv {OLD}
USER 10001:10001
"""
pytestmark = pytest.mark.timeout(900)


# ── What is no backup: refused before there is anything ──────────────────────────────────────────


def packed(**changes: str) -> bytes:
    """A whole backup but for its contents, with changes to what its manifest says."""
    manifest = {
        "format": "1",
        "created": "2026-11-22T09:00:00Z",
        "prefect": "3.9.1",
        "postgres": "17",
        "flow_runs": "0",
        "deployments": "0",
    } | changes
    parts = dict.fromkeys(PARTS, b"something\n" * 100)
    parts["manifest"] = "".join(f"{key}={value}\n" for key, value in manifest.items()).encode()
    sums = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in parts.items()]
    return tar(parts | {"SHA256SUMS": "".join(sums).encode()})


def tar(files: dict[str, bytes]) -> bytes:
    """An archive of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (packed()[:2000], "truncated"),
        (packed().replace(b"something", b"somethinG", 1), "damaged"),
        (b"", "something else"),
        (b"a letter\n" * 1000, "something else"),
        (tar({"letter": b"Dear Sir,\n"}), "something else"),
        (b"Salted__12345678" + b"0" * 160, "another passphrase, or a damaged file"),
        (packed(format="2"), "expected: one of format 1 or older"),
        (packed(postgres="18"), "expected: one of PostgreSQL 17 or older"),
    ],
    ids=["truncated", "damaged", "empty", "text", "tar", "encrypted", "format", "postgres"],
)
def test_what_is_no_backup_of_ours_is_refused(
    project_copy: Stack, content: bytes, found: str
) -> None:
    (project_copy.folder / "file").write_bytes(content)
    output = project_copy.make("restore", "FILE=file", code=2, env=PASSPHRASE)
    assert found in output
    assert "FAIL  backup" in output
    assert not (project_copy.folder / ".env").exists()
    assert list((project_copy.folder / "backups").iterdir()) == []
    assert left_behind(project_copy.project) == []


def test_no_file_and_no_passphrase_are_refused(project_copy: Stack) -> None:
    assert "expected: a backup" in project_copy.make("restore", code=2)
    assert "found:    nowhere" in project_copy.make("restore", "FILE=nowhere", code=2)
    (project_copy.folder / "file").write_bytes(b"Salted__12345678" + b"0" * 160)
    assert "FAIL  BACKUP_PASSPHRASE" in project_copy.make("restore", "FILE=file", code=2)


# ── One stack, from an older version to its restore ──────────────────────────────────────────────


@pytest.fixture(scope="module")
def stack(_our_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of these tests' own, since it is destroyed on the way.

    Its server is an older Prefect's, with a history; its files are the new one's.
    """
    stack = Stack(tmp_path_factory.mktemp("backup"), f"test-backup-{os.getpid()}")
    try:
        dockerfile = stack.folder / "server/Dockerfile"
        new = dockerfile.read_text()
        assert new.count("\nFROM python\n") == 1
        named = new.replace("\nFROM python\n", "\nFROM python AS current\n")
        dockerfile.write_text(named + DOCKERFILE)
        stack.make("up", env=stack.settings | PASSPHRASE | ALERTS)
        assert stack.api("GET", "/admin/version") == "3.8.8"
        flow = stack.api("POST", "/flows/", {"name": "history"})["id"]
        for number in range(RUNS):
            state = {"type": "COMPLETED", "message": str(number)}
            stack.api("POST", "/flow_runs/", {"flow_id": flow, "state": state})
        dockerfile.write_text(new)
        yield stack
        stack.make("destroy", env={"YES": "1"})
        assert left_behind(stack.project) == []
    finally:
        stack.remove()


def history(stack: Stack) -> int:
    found: int = stack.api("POST", "/flow_runs/count", {"flows": {"name": {"any_": ["history"]}}})
    return found


def test_a_failed_migration_leads_back_to_the_old_version(stack: Stack) -> None:
    runs = len(stack.runs(DAILY))
    [[revision]] = stack.sql("SELECT version_num FROM alembic_version")
    stack.sql("CREATE TABLE automation_held_event (id int)")  # which the migration wants to create
    output = stack.make("upgrade", code=2)
    assert 'relation "automation_held_event" already exists' in output
    assert "The old version runs, with its data." in output
    assert stack.api("GET", "/admin/version") == "3.8.8"
    assert stack.sql("SELECT version_num FROM alembic_version") == [(revision,)]
    assert history(stack) == RUNS
    stack.make("run", f"FLOW={DAILY}")
    assert len(stack.runs(DAILY)) == runs + 1
    stack.sql("DROP TABLE automation_held_event")


def test_a_version_that_does_not_work_leads_back_to_the_old_one(stack: Stack) -> None:
    """By its own Compose file, too, though the new one has been started by then."""
    file, running = stack.folder / "docker-compose.yml", stack.folder / ".running.yml"
    new, old = file.read_text(), running.read_text()
    run = stack.folder / "ops/run.py"
    works = run.read_text()
    file.write_text(f"{new}# new\n")
    run.write_text("raise SystemExit('it has been broken')\n")
    output = stack.make("upgrade", code=2)
    assert "it has been broken" in output
    assert f"the run of {DAILY} failed" in output
    assert "The old version runs, with its data." in output
    assert stack.api("GET", "/admin/version") == "3.8.8"
    assert history(stack) == RUNS
    assert running.read_text() == old
    assert (stack.folder / "backups/upgrade.log").stat().st_mode & 0o777 == 0o600
    file.write_text(new)
    run.write_text(works)


def test_an_upgrade_that_nothing_could_verify_is_refused(stack: Stack) -> None:
    output = stack.make("upgrade", "FLOW=nobodys/flow", code=2)
    assert "found:    nobodys/flow" in output
    assert "Backup" not in output


def test_an_upgrade_keeps_everything(stack: Stack) -> None:
    schedules = stack.deployment(DAILY)["schedules"]
    output = stack.make("upgrade")
    assert "==> Upgraded" in output
    assert stack.api("GET", "/admin/version") != "3.8.8"
    assert history(stack) == RUNS
    assert stack.deployment(DAILY)["schedules"] == schedules
    assert stack.runs(DAILY)[0]["state"]["type"] == "COMPLETED"
    # A second time there is nothing to do, and no backup of it.
    backups = os.listdir(stack.folder / "backups")
    assert "Up to date." in stack.make("upgrade")
    assert os.listdir(stack.folder / "backups") == backups


def secret(stack: Stack, value: str | None = None) -> str:
    """The value of the Secret block `key`, which is made with a value if one is given."""
    if value:
        kind = stack.api("GET", "/block_types/slug/secret")["id"]
        only = {"block_schemas": {"block_type_id": {"any_": [kind]}}}
        schema = stack.api("POST", "/block_schemas/filter", only)[0]["id"]
        body = {"name": "key", "block_type_id": kind, "block_schema_id": schema}
        stack.api("POST", "/block_documents/", {**body, "data": {"value": value}})
    path = "/block_types/slug/secret/block_documents/name/key?include_secrets=true"
    return str(stack.api("GET", path)["data"]["value"])


def ticks(stack: Stack, *names: str) -> list[dict[str, Any]]:
    """The runs of the test's schedule that are in a state of one of these names, in their order."""
    states = {"state": {"name": {"any_": list(names)}}}
    body = {
        "deployments": {"id": {"any_": [stack.deployment(TICK)["id"]]}},
        "flow_runs": {**states, "tags": {"all_": ["auto-scheduled"]}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    found: list[dict[str, Any]] = stack.api("POST", "/flow_runs/filter", body)
    return found


def due(run: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(run["expected_start_time"])


def completed_after(stack: Stack, moment: datetime) -> Callable[[], dict[str, Any] | None]:
    def look() -> dict[str, Any] | None:
        done = ticks(stack, "Completed")
        return next((run for run in done if due(run) > moment), None)

    return look


def interrupted(stack: Stack, *args: str, when: Callable[[str], bool]) -> None:
    """`make …`, and Ctrl-C as soon as what it has printed is such; it has to fail."""
    output = stack.folder / "output"
    with (
        output.open("w") as file,
        subprocess.Popen(
            ["make", *args],
            cwd=stack.folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # with a process group of its own, as a terminal gives it
        ) as process,
    ):

        def reached() -> bool | None:
            assert process.poll() is None, f"ended too early: {output.read_text()}"
            return when(output.read_text()) or None

        try:
            eventually(f"a point in make {args[0]} to interrupt it at", 200, reached)
        finally:
            os.killpg(process.pid, signal.SIGINT)
        assert process.wait(90) != 0, output.read_text()


@contextlib.contextmanager
def dump_waits(stack: Stack) -> Iterator[None]:
    """A backup doesn't get beyond its dump, which waits for a lock."""
    with stack.database() as database, database.cursor() as cursor:
        cursor.execute("LOCK TABLE flow_run_state IN ACCESS EXCLUSIVE MODE")
        yield


def leftovers(stack: Stack) -> list[str]:
    """What is in backups/ of a backup or a restore that hasn't ended."""
    return [path.name for path in (stack.folder / "backups").glob(".*")]


def test_a_backup_comes_back_on_a_machine_that_has_nothing(stack: Stack) -> None:
    value = "s3cret"
    assert secret(stack, value) == value
    automations = stack.api("POST", "/automations/count")
    assert automations > 0
    stack.api("POST", "/v2/concurrency_limits/", {"name": "bath", "limit": 1, "active_slots": 1})
    stack.make("run", "FLOW=users-etl/hourly")
    deployments = {item["id"] for item in stack.api("POST", "/deployments/filter", {})}
    every = {"interval": 15, "anchor_date": "2026-01-01T00:00:00Z", "timezone": "UTC"}
    tick = stack.deployment(TICK)["id"]
    stack.api("POST", f"/deployments/{tick}/schedules", [{"active": True, "schedule": every}])
    eventually("a slot done", 120, completed_after(stack, datetime(2026, 1, 1, tzinfo=UTC)))
    at_work = stack.start(DAILY, url=f"{ACTIVITY_URL}?fault_delay=60")
    stack.running(at_work)

    before = datetime.now(UTC)
    path = stack.folder / stack.make("backup").splitlines()[-1]
    assert path.parent == stack.folder / "backups"
    assert path.name.endswith(".tar.enc")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert leftovers(stack) == []
    begun = {"flow_runs": {"start_time": {"before_": before.isoformat()}}}
    history = stack.api("POST", "/flow_runs/count", begun)
    env = (stack.folder / ".env").read_text()
    slot = eventually("a slot after the backup", 120, completed_after(stack, before))

    stack.make("destroy", env={"YES": "1"})
    (stack.folder / ".env").unlink()
    wrong = {"BACKUP_PASSPHRASE": "wrong"}
    assert "another passphrase" in stack.make("restore", f"FILE={path}", code=2, env=wrong)
    assert not (stack.folder / ".env").exists()

    output = stack.make("restore", f"FILE={path}", env=PASSPHRASE)
    restored = datetime.now(UTC)
    assert "everything is right" in output
    assert (stack.folder / ".env").read_text() == env
    assert not (stack.folder / ".env.before-restore").exists()
    assert leftovers(stack) == []
    assert secret(stack) == value
    assert stack.api("POST", "/automations/count") == automations
    assert {item["id"] for item in stack.api("POST", "/deployments/filter", {})} == deployments
    assert stack.api("POST", "/flow_runs/count", begun) == history
    assert stack.api("GET", "/artifacts/activity/latest")["data"]
    assert "users/" in stack.make("data")
    assert stack.api("GET", "/v2/concurrency_limits/bath")["active_slots"] == 0

    # The slot that was done after the backup isn't done again, nor is anything of the past.
    assert stack.api("GET", f"/flow_runs/{slot['id']}")["state"]["name"] == "Skipped"
    assert stack.api("GET", f"/flow_runs/{at_work}")["state"]["type"] == "CRASHED"
    eventually("the next slot", 120, completed_after(stack, restored))
    skipped = [due(run) for run in ticks(stack, "Skipped")]
    done = [due(run) for run in ticks(stack, "Completed")]
    assert set(skipped).isdisjoint(done)
    assert [moment for moment in done if before < moment <= max(skipped)] == []
    assert stack.gone(at_work)


def test_a_days_backup_is_made_and_old_ones_go(stack: Stack) -> None:
    folder = stack.folder / "backups"
    for day in range(1, 4):
        (folder / f"{stack.project}-2026010{day}T030000Z-daily.tar").write_bytes(b"old")
    by_hand = {path for path in folder.iterdir() if "daily" not in path.name}
    env = stack.folder / ".env"
    text = env.read_text()
    env.write_text(
        text.replace("COMPOSE_PROFILES=", "COMPOSE_PROFILES=backup")
        .replace("BACKUP_AT=03:00", "BACKUP_AT=00:00")
        .replace("BACKUP_KEEP=7", "BACKUP_KEEP=2")
    )
    try:
        stack.make("up")

        def kept() -> list[str] | None:
            found = sorted(path.name for path in folder.glob("*-daily.tar*"))
            return found if len(found) == 2 else None

        found = eventually("a daily backup in place of the oldest", 90, kept)
        assert found[0] == f"{stack.project}-20260103T030000Z-daily.tar"
        assert found[1].endswith("-daily.tar.enc")
        assert by_hand < set(folder.iterdir())
        assert "everything is right" in stack.make("status")
    finally:
        env.write_text(text)
    stack.make("up")
    assert "backup" not in stack.run("docker", "compose", "ps", "--services").stdout.split()


def test_more_signals_let_the_first_one_clean_up(stack: Stack) -> None:
    with dump_waits(stack):
        once = ("run", "--rm", "--detach", "--no-deps", "backup", "once")
        begun = stack.run("docker", "compose", "--progress", "quiet", *once)
        assert begun.returncode == 0, begun.stdout
        name = begun.stdout.split()[-1]
        [folder] = eventually("a backup being made", 30, lambda: leftovers(stack) or None)
        job = folder.removeprefix(".making.")
        # Many, so that one comes at every moment; what cleans up begins when all have come.
        many = f"""
            main=$(cut --delimiter=' ' --fields=4 /proc/{job}/stat)
            kill -s STOP -{job}
            for _ in {{1..200}}; do kill -s INT $main; done
            sleep 1
            kill -s CONT -{job}"""
        docker("exec", "--detach", name, "bash", "-c", many)  # it goes with the container
        eventually("nothing left of it", 30, lambda: leftovers(stack) == [] or None)


def test_interrupted_or_refused_it_leaves_everything_as_it_was(stack: Stack) -> None:
    completed = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    count = stack.api("POST", "/flow_runs/count", completed)
    good = stack.make("backup").splitlines()[-1]
    assert "found:    running" in stack.make("restore", f"FILE={good}", code=2)

    # A backup of a Prefect to come, whose schema this one doesn't know.
    [[revision]] = stack.sql("SELECT version_num FROM alembic_version")
    stack.sql("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    try:
        newer = stack.make("backup").splitlines()[-1]
    finally:
        stack.sql(f"UPDATE alembic_version SET version_num = '{revision}'")  # noqa: S608

    present = sorted(os.listdir(stack.folder / "backups"))
    with dump_waits(stack):
        interrupted(stack, "backup", when=lambda _: leftovers(stack) != [])
    eventually("nothing left of it", 30, lambda: leftovers(stack) == [] or None)
    assert sorted(os.listdir(stack.folder / "backups")) == present

    stack.make("down")
    env = (stack.folder / ".env").read_text()
    assert "Can't locate revision" in stack.make("restore", f"FILE={newer}", "YES=1", code=2)
    assert "expected: a yes" in stack.make("restore", f"FILE={good}", code=2)
    interrupted(
        stack, "restore", f"FILE={good}", "YES=1", when=lambda said: "ok    database" in said
    )
    assert leftovers(stack) == []
    assert (stack.folder / ".env").read_text() == env
    assert [name for name in left_behind(stack.project) if "run" in name] == []
    stack.run("docker", "compose", "up", "--detach", "--wait", "postgres")
    assert stack.sql("SELECT datname FROM pg_database WHERE datname LIKE 'prefect_%'") == []
    assert stack.sql("SELECT count(*) FROM flow_run WHERE state_type = 'COMPLETED'") >= [(count,)]

    # What an upgrade's new version had begun isn't begun again by the old one.
    [[begun]] = stack.sql("SELECT id::text FROM flow_run WHERE state_type = 'SCHEDULED' LIMIT 1")
    url = ("--env", "PREFECT_API_URL=http://127.0.0.1:4200/api")
    skip = ("python", "-m", "ops.restore", "skip", begun, str(uuid.uuid4()))
    done = stack.run("docker", "compose", "run", "--rm", "--no-deps", *url, "server", *skip)
    assert done.returncode == 0, done.stdout
    assert stack.sql(f"SELECT state_name FROM flow_run WHERE id = '{begun}'") == [("Skipped",)]  # noqa: S608
