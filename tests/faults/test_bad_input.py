"""Everything that people get wrong: a clear error, nothing lost, and the next `make up` works."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.stack import DAILY, Stack, docker, left_behind, settings_of


@contextmanager
def edited(path: Path, edit: Callable[[str], str]) -> Iterator[None]:
    """A file with other content, for a while."""
    original = path.read_text()
    path.write_text(edit(original))
    try:
        yield
    finally:
        path.write_text(original)


def assert_untouched(project: Stack) -> None:
    """Preflight failed: so nothing may have been made."""
    assert left_behind(project.project) == []
    assert not (project.folder / ".secrets").exists()


def test_a_port_that_is_taken(project_copy: Stack) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", project_copy.port))
        sock.listen()
        output = project_copy.make("up", code=2, env=project_copy.settings)
    assert f"port {project_copy.port}" in output
    assert "somebody listens there" in output
    assert "PREFECT_PORT" in output
    assert_untouched(project_copy)
    assert not (project_copy.folder / ".env").exists()


def test_settings_that_are_empty_or_wrong_are_all_named_at_once(project_copy: Stack) -> None:
    example = (project_copy.folder / ".env.example").read_text()
    text = example.replace("NAME=prefect-stack", f"NAME={project_copy.project}")
    text = text.replace("UPSTREAM_PORT=4280", f"UPSTREAM_PORT={project_copy.port}")
    text = text.replace("SCHEDULE_TIMEZONE=UTC", "SCHEDULE_TIMEZONE=Mars/Olympus")
    text = text.replace("PREFECT_PORT=4200", "PREFECT_PORT=many").replace(
        "http://upstream", "upstream"
    )
    text = text.replace("ALERT_WEBHOOK_URL=", "ALERT_WEBHOOK_URL=me@example.org")
    (project_copy.folder / ".env").write_text(text)
    output = project_copy.make("up", code=2)
    for key in (
        "PREFECT_API_AUTH_STRING",
        "POSTGRES_PASSWORD",
        "PREFECT_SERVER_ENCRYPTION_KEY",
        "SCHEDULE_TIMEZONE",
        "PREFECT_PORT",
        "ACTIVITY_API_URL",
        "USERS_API_URL",
        "FACT_API_URL",
        "GITHUB_API_URL",
        "ALERT_WEBHOOK_URL",
    ):
        assert f"FAIL  {key}" in output
    assert "10 of the above to mend, then: make up" in output
    assert (project_copy.folder / ".env").read_text() == text
    assert_untouched(project_copy)


@pytest.mark.parametrize("verb", ["status", "run", "data", "deploy", "down", "destroy"])
def test_verbs_before_the_first_up_say_what_to_do(project_copy: Stack, verb: str) -> None:
    output = project_copy.make(verb, code=2, env={"YES": "1"})
    assert "no .env here" in output
    assert "make up" in output


def test_no_engine_and_no_root(project_copy: Stack) -> None:
    """A bare machine, as a container sees itself: no Docker, and not root."""
    for script in ("preflight.sh", "engine.sh"):
        command = ["docker", "run", "--rm", "--user", "1234", "--network=none"]
        volume = ["--volume", f"{project_copy.folder}:/project:ro", "debian:trixie-slim"]
        project_copy.folder.chmod(0o755)
        done = subprocess.run(
            [*command, *volume, "sh", f"/project/setup/{script}"], capture_output=True, text=True
        )
        assert done.returncode == 1, done
        assert "FAIL  Docker engine" in done.stderr
        assert "sudo make engine" in done.stderr


def test_an_engine_that_does_not_answer(project_copy: Stack) -> None:
    output = project_copy.make(
        "up", code=2, env={"DOCKER_HOST": "unix:///nowhere.sock", **project_copy.settings}
    )
    assert "DOCKER_HOST=unix:///nowhere.sock" in output
    assert "unset DOCKER_HOST" in output


def test_settings_of_the_first_up_that_are_wrong_in_the_environment(project_copy: Stack) -> None:
    port = str(project_copy.port)
    wrong = {
        "COMPOSE_PROJECT_NAME": "New Comer",
        "SCHEDULE_TIMEZONE": "Mars/Olympus",
        "FORK_WORKERS": "some",
        "HOST_PORTS": "22 70000",
    }
    output = project_copy.make(
        "up", code=2, env=wrong | {"PREFECT_PORT": port, "UPSTREAM_PORT": port}
    )
    for key in wrong:
        assert f"FAIL  {key} in the environment" in output
    assert "expected: another port than PREFECT_PORT" in output
    assert "5 of the above to mend, then: make up" in output
    assert not (project_copy.folder / ".env").exists()
    assert_untouched(project_copy)


def wrapped(folder: Path, name: str, script: str) -> str:
    """A PATH on which one program answers a question differently and is itself otherwise."""
    real = shutil.which(name)
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin" / name
    program.write_text(f'#!/bin/sh\n{script}\nexec {real} "$@"\n')
    program.chmod(0o755)
    return f"{folder / 'bin'}:{os.environ['PATH']}"


def test_a_compose_that_is_too_old(project_copy: Stack) -> None:
    path = wrapped(
        project_copy.folder, "docker", '[ "$*" = "compose version --short" ] && echo 2.20.3 && exit'
    )
    output = project_copy.make("up", code=2, env={"PATH": path, **project_copy.settings})
    assert "FAIL  Docker Compose" in output
    assert "2.24 or newer" in output
    assert "2.20.3" in output
    assert_untouched(project_copy)


def test_a_disk_that_is_full_and_an_engine_that_prunes_for_others(project_copy: Stack) -> None:
    folder = project_copy.folder
    full = "echo Filesystem 1024-blocks Used Available; echo /dev/x 100 99 1024; exit"
    path = wrapped(folder, "df", full)
    output = project_copy.make("up", code=2, env={"PATH": path, **project_copy.settings})
    assert "FAIL  disk" in output
    assert_untouched(project_copy)

    # During a build: one that writes until a real, small file system has no room left.
    (folder / "bin/df").unlink()
    dockerfile = folder / "upstream/Dockerfile"
    small_disk = "--mount=type=tmpfs,target=/full,size=1m"
    fill = f"FROM python\nRUN {small_disk} head -c 9000000 /dev/zero >/full/x\n"
    with edited(dockerfile, lambda text: text.replace("FROM python\n", fill, 1)):
        output = project_copy.make("images", code=2, env=project_copy.settings)
    assert "No space left on device" in output
    assert "FAIL  images" in output
    busy = "echo Error: a prune operation is already running >&2; exit 1"
    path = wrapped(folder, "docker", f'case $* in "image prune"*) {busy} ;; esac')
    project_copy.make("images", env={"PATH": path})
    project_copy.make("destroy", env={"YES": "1"})
    assert left_behind(project_copy.project) == []


BAD_ENTRIES = """
  - {name: good, entrypoint: "flows/suggest_activity.py:suggest_activity", work_pool: *docker-pool}
  - name: bad-zone
    entrypoint: flows/suggest_activity.py:suggest_activity
    schedules: [{cron: "0 9 * * *", slug: x, timezone: Mars/Olympus}]
    work_pool: *docker-pool
  - name: bad-cron
    entrypoint: flows/suggest_activity.py:suggest_activity
    schedules: [{cron: "61 25 * * *", slug: x}]
    work_pool: *docker-pool
  - {name: bad-import, entrypoint: "flows/broken.py:broken", work_pool: *docker-pool}
  - {name: bad-syntax, entrypoint: "flows/syntax.py:syntax", work_pool: *docker-pool}
  - {name: no-module, entrypoint: "flows/nowhere.py:nowhere", work_pool: *docker-pool}
  - {name: no-pool, entrypoint: "flows/suggest_activity.py:suggest_activity"}
  - name: wrong-pool
    entrypoint: flows/suggest_activity.py:suggest_activity
    work_pool: {name: x}
  - {name: bad/name, entrypoint: "flows/suggest_activity.py:suggest_activity"}
  - name: bad-parameter
    entrypoint: flows/cat_fact.py:cat_fact
    parameters: {cuont: 3}
    work_pool: *docker-pool
  - {name: good, entrypoint: "flows/suggest_activity.py:suggest_activity", work_pool: *docker-pool}
  - 5
  - {name: last, entrypoint: "flows/suggest_activity.py:suggest_activity", work_pool: *docker-pool}
"""


BROKEN_FLOW = """import no_such_package
from prefect import flow

@flow
def broken(): ...
"""
BAD_NAMES = [
    "bad-zone",
    "bad-cron",
    "bad-import",
    "bad-syntax",
    "no-module",
    "no-pool",
    "wrong-pool",
    "bad/name",
    "bad-parameter",
    "suggest-activity/good",
    "deployment 19",
]


def test_bad_deployments_do_not_stop_the_good_ones(stack: Stack, first_run: dict[str, Any]) -> None:
    before = stack.deployment(DAILY)
    (stack.folder / "flows/broken.py").write_text(BROKEN_FLOW)
    (stack.folder / "flows/syntax.py").write_text("def syntax(:\n")
    try:
        with edited(stack.folder / "prefect.yaml", lambda text: text + BAD_ENTRIES):
            output = stack.make("deploy", code=2)
            # The same on the way up: the worker starts all the same, and the exit code tells.
            up = stack.make("up", code=2)
    finally:
        (stack.folder / "flows/broken.py").unlink()
        (stack.folder / "flows/syntax.py").unlink()
    for text in (output, up):
        assert "'Mars/Olympus'" in text
        assert "'61 25 * * *'" in text
        assert "ModuleNotFoundError: No module named 'no_such_package'" in text
        assert "SyntaxError" in text
        assert "flows/nowhere.py" in text
        assert "references work pool 'x' which does not exist" in " ".join(text.split())
        assert "a second suggest-activity/good" in text
        summary = text.split(f"{len(BAD_NAMES)} not deployed: ")[1].splitlines()[0]
        assert all(name in summary for name in BAD_NAMES)
    assert f"http://127.0.0.1:{stack.port}" in up, "where the good ones are, all the same"
    assert stack.deployment("suggest-activity/good")
    assert stack.deployment("suggest-activity/last")
    assert stack.deployment(DAILY)["id"] == before["id"]
    assert docker("ps", "--quiet", "--filter", f"name={stack.project}-worker")

    assert "FAIL" not in stack.make("deploy")
    for name in ("good", "last"):
        deployment = stack.deployment(f"suggest-activity/{name}")["id"]
        stack.api("DELETE", f"/deployments/{deployment}")
    assert "everything is right" in stack.make("status")


def test_a_prefect_yaml_that_is_no_yaml(stack: Stack, first_run: dict[str, Any]) -> None:
    with edited(stack.folder / "prefect.yaml", lambda text: text + "\n  - {"):
        output = stack.make("deploy", code=2)
    assert "expected: YAML in prefect.yaml" in output
    assert "line" in output


def test_an_unknown_time_zone_that_only_containers_can_tell(
    stack: Stack, first_run: dict[str, Any]
) -> None:
    wrong = "SCHEDULE_TIMEZONE=Europe/Atlantis"
    with edited(stack.folder / ".env", lambda text: text.replace("SCHEDULE_TIMEZONE=UTC", wrong)):
        output = stack.make("deploy", code=2)
        assert "an IANA time zone such as Europe/Berlin as SCHEDULE_TIMEZONE in .env" in output
        assert "Europe/Atlantis" in output


def test_a_prefect_yaml_that_is_not_there(stack: Stack, first_run: dict[str, Any]) -> None:
    path = stack.folder / "prefect.yaml"
    path.rename(stack.folder / "away.yaml")
    output = stack.make("deploy", code=2)
    (stack.folder / "away.yaml").rename(path)
    assert "prefect.yaml" in output
    assert "FAIL  flow image" in output
    assert "unchanged" in stack.make("deploy")


@pytest.mark.parametrize("flow", ["", "x", "my flow"])
def test_run_wants_a_flow_and_a_deployment(
    stack: Stack, first_run: dict[str, Any], flow: str
) -> None:
    output = stack.make("run", f"FLOW={flow}", code=2)
    assert "FAIL  FLOW" in output
    assert f"found:    {flow or 'nothing'}\n" in output


def test_windows_line_ends_are_named_as_such(project_copy: Stack) -> None:
    text = (project_copy.folder / ".env.example").read_text()
    (project_copy.folder / ".env").write_bytes(text.replace("\n", "\r\n").encode())
    output = project_copy.make("up", code=2)
    assert "Windows line ends (CRLF)" in output
    assert "SCHEDULE_TIMEZONE" not in output


def test_an_environment_that_says_other_than_env(stack: Stack, first_run: dict[str, Any]) -> None:
    output = stack.make("up", code=2, env={"PREFECT_PORT": "4711"})
    assert "FAIL  PREFECT_PORT in the environment" in output
    assert "unset PREFECT_PORT" in output


def test_a_second_copy_under_the_same_name(stack: Stack, project_copy: Stack) -> None:
    settings = {**project_copy.settings, "COMPOSE_PROJECT_NAME": stack.project}
    output = project_copy.make("up", code=2, env=settings)
    assert "FAIL  COMPOSE_PROJECT_NAME" in output
    assert str(stack.folder) in output


def test_a_database_password_that_the_volume_does_not_know_and_another_login(
    stack: Stack, first_run: dict[str, Any]
) -> None:
    """The one is refused, the other taken over by the next `make up`."""
    history = {run["id"] for run in stack.runs(DAILY)}
    env, login = stack.folder / ".env", stack.login
    old = settings_of(env)["POSTGRES_PASSWORD"]
    with edited(env, lambda text: text.replace(old, "another")):
        output = stack.make("up", code=2)
    assert "FAIL  database password" in output
    assert "the password that the database volume was created with" in output

    another = f"someone:{secrets.token_urlsafe(18)}"
    env.write_text(env.read_text().replace(login, another))
    assert another in stack.make("up")
    assert {run["id"] for run in stack.runs(DAILY)} == history
    user, password = login.split(":", 1)
    assert stack.ask("GET", "/api/admin/version", auth=(user, password)).status_code == 401


def test_down_verbs_say_so_and_an_interrupted_up_can_be_started_again(
    stack: Stack, first_run: dict[str, Any]
) -> None:
    history = {run["id"] for run in stack.runs(DAILY)}
    stack.make("down")
    for verb in ("status", "run", "deploy"):
        output = stack.make(verb, code=2)
        assert "FAIL  server" in output
        assert "make up" in output
    for seconds in (1, 4, 9):
        process = subprocess.Popen(
            ["make", "up"],
            cwd=stack.folder,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) != 0
    stack.make("up")
    assert {run["id"] for run in stack.runs(DAILY)} == history
    assert "everything is right" in stack.make("status")


def test_base_job_template_is_updated_in_place(stack: Stack, first_run: dict[str, Any]) -> None:
    template = stack.folder / "worker/base-job-template.json"
    pool = stack.api("GET", "/work_pools/docker-pool")
    with edited(template, lambda text: text.replace('"default": 512', '"default": 256')):
        assert "work pool docker-pool: updated" in stack.make("deploy")
        changed = stack.api("GET", "/work_pools/docker-pool")
        properties = changed["base_job_template"]["variables"]["properties"]
        assert properties["pids_limit"]["default"] == 256
        assert changed["id"] == pool["id"]
    stack.make("deploy")
    restored = stack.api("GET", "/work_pools/docker-pool")
    assert restored["base_job_template"] == pool["base_job_template"]
