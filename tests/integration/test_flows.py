"""Every flow of prefect.yaml on the stack: in a container, started by its deployment."""

import csv
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.stack import DAILY, PROJECT, Stack, docker, eventually

USERS = "http://upstream:8000/api/users"  # as flow containers see it
USERS_ETL = "users-etl/hourly"
STARS = "github-stars/on-demand"


def latest(stack: Stack, key: str) -> Any:
    """The newest artifact of that key: Prefect keeps a table as a JSON text."""
    artifact = stack.api("GET", f"/artifacts/{key}/latest")
    return yaml.safe_load(artifact["data"]) if artifact["type"] == "table" else artifact["data"]


def files(stack: Stack, folder: Path, path: str) -> list[Path]:
    """What `make data` copies out of a folder of the data volume."""
    stack.make("data", env={"TO": str(folder)})
    return sorted((folder / path).glob("**/*"))


def test_every_deployment_runs(stack: Stack, first_run: dict[str, Any], tmp_path: Path) -> None:
    entries = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]
    names = {
        f"{entry['entrypoint'].split(':')[1].replace('_', '-')}/{entry['name']}"
        for entry in entries
    }
    assert len(names) == 7
    runs = {name: stack.start(name) for name in sorted(names)}
    for name, run in runs.items():
        ended = stack.finished(run, 240)
        assert ended["state_type"] == "COMPLETED", name
        assert ended["infrastructure_pid"], f"{name} ran in no container"
        stack.cleared(run)

    assert latest(stack, "github-stars")[0]["repository"] == "psf/requests"
    assert latest(stack, "morning-report").count("✅") == 4
    stack.attempts(runs[STARS], {"celebrate": 1, "save_table": 1})
    written = [file for file in files(stack, tmp_path, "users") if file.is_file()]
    assert len(written) >= 2, "users-etl by itself, and as a part of the report"
    assert all(file.name in stack.make("data") for file in written)


def test_make_run_shows_logs_and_refuses_what_is_wrong(
    stack: Stack, first_run: dict[str, Any]
) -> None:
    facts = stack.make(
        "run", "FLOW=cat-fact-async/on-demand", env={"PARAMS": '{"count": 3, "at_once": 2}'}
    )
    assert facts.count("Did you know?") == 3
    assert ": Completed\n" in facts

    unreachable = 'PARAMS={"url": "http://server:1"}'
    fails = stack.make("run", "FLOW=cat-fact/on-demand", unreachable, code=2)
    assert "Connection refused" in fails
    assert ": Failed: " in fails

    for arguments, messages in {
        ("FLOW=cat-fact/of-demand",): ["expected: one of", STARS, DAILY, USERS_ETL],
        ("FLOW=cat-fact/on-demand", "PARAMS={count: 1}"): ["expected: a JSON object"],
        ("FLOW=cat-fact/on-demand", 'PARAMS={"url": "\\u0000"}'): ["the character NUL"],
        ("FLOW=cat-fact/on-demand", 'PARAMS={"cuont": 1}'): ["How many facts", "cuont"],
        ("FLOW=cat-fact/on-demand", 'PARAMS={"count": 0}'): [
            "integer, from 1, to 100",
            "minimum of 1",
        ],
        ("FLOW=cat-fact/on-demand", 'PARAMS={"url": "$HOME"}'): ["'$HOME' does not match"],
    }.items():
        before = len(stack.runs("cat-fact/on-demand"))
        output = stack.make("run", *arguments, code=2)
        assert all(message in output for message in messages), output
        assert "fix:      make run FLOW=" in output
        assert len(stack.runs("cat-fact/on-demand")) == before


def test_a_retried_run_asks_only_for_what_it_has_not_got(
    stack: Stack, first_run: dict[str, Any]
) -> None:
    run = stack.start(STARS, repositories=["psf/requests", "nobody/nothing"])
    assert stack.finished(run)["state_type"] == "FAILED"
    assert [row["repository"] for row in latest(stack, "github-stars")] == ["psf/requests"]
    stack.cleared(run)
    # What the UI's Retry does.
    stack.api(
        "POST",
        f"/flow_runs/{run}/set_state",
        {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True},
    )
    eventually(
        "the second attempt's end",
        120,
        lambda: (
            (
                (found := stack.api("GET", f"/flow_runs/{run}"))["run_count"] == 2
                and found["state_type"] == "FAILED"
            )
            or None
        ),
    )

    wanted = {
        ("get_repository-psf/requests", "Cached"),
        ("get_repository-nobody/nothing", "Failed"),
    }

    def states() -> bool | None:
        of_run = {"flow_runs": {"id": {"any_": [run]}}}
        tasks = stack.api("POST", "/task_runs/filter", of_run)
        found = {(task["name"], task["state_name"]) for task in tasks}
        return True if found >= wanted else None

    eventually("one task Cached, the other one Failed", 30, states)


def test_a_report_goes_on_when_a_part_of_it_fails(stack: Stack, first_run: dict[str, Any]) -> None:
    refused = {"env": {"FACT_API_URL": "http://upstream:8000/api/fact?fault_status=404"}}
    run = stack.start("morning-report/weekdays", job_variables=refused)
    ended = stack.finished(run)
    assert (ended["state_type"], ended["state"]["message"]) == ("FAILED", "1 of 4 failed: A fact")
    report = latest(stack, "morning-report")
    assert report.count("✅") == 3
    assert "❌ **A fact:** Failed: " in report


def test_users_survive_an_upstream_that_fails_three_times(
    stack: Stack, first_run: dict[str, Any], tmp_path: Path
) -> None:
    fault = "fault_status=503&fault_times=3&fault_key=three"
    run = stack.start(USERS_ETL, url=f"{USERS}?{fault}", path="heals", retry_delay_seconds=0.5)
    assert stack.finished(run)["state_type"] == "COMPLETED"
    stack.attempts(run, {"extract": 4})
    stack.said(run, "503 Server Error")
    [file] = files(stack, tmp_path, "heals")
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 12
    assert all(value for row in rows for value in row.values())


@pytest.fixture
def full_volume(stack: Stack) -> Iterator[str]:
    """A volume of 4 KiB that flow containers may write to: FLOW_VOLUMES has it (conftest.py)."""
    options = ("--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=4k,uid=10001")
    name = docker("volume", "create", *options, stack.settings["FLOW_VOLUMES"]).strip()
    # Held for as long as the test takes: what it contains goes with its last container.
    mount = ("--volume", f"{name}:/data")
    holder = docker("run", "--detach", *mount, "debian:trixie-slim", "sleep", "300").strip()
    yield name
    left = docker("exec", holder, "find", "/data", "-name", "*users-*")
    docker("rm", "--force", holder)
    docker("volume", "rm", name)
    assert left == "", "no half of a file"


def test_a_data_volume_that_takes_nothing(
    stack: Stack, first_run: dict[str, Any], full_volume: str
) -> None:
    """Files are lost with a clear error; what is no more than kept for a retry is no error."""
    full = {"volumes": [f"{full_volume}:/data"]}
    read_only = {"volumes": [f"{stack.project}_data:/data:ro"]}
    full_run, read_only_run = (
        stack.start(USERS_ETL, path="x", job_variables=each) for each in (full, read_only)
    )
    runs = {full_run: "No space left on device", read_only_run: "Read-only file system"}
    goes_on = [stack.start(DAILY, job_variables=each) for each in (full, read_only)]
    for run, message in runs.items():
        ended = stack.finished(run)
        assert ended["state_type"] == "FAILED"
        assert f"{message}: '/data/x/users-" in ended["state"]["message"]
    for run in goes_on:
        assert stack.finished(run)["state_type"] == "COMPLETED"
    for run in [*runs, *goes_on]:  # before the volume goes
        stack.cleared(run)


def test_leaving_make_run_leaves_nobody_behind(stack: Stack, first_run: dict[str, Any]) -> None:
    """Ctrl-C, without a terminal: the follower goes, the run goes on."""
    slow = '{"url": "http://upstream:8000/api/fact?fault_delay=9"}'
    follower = subprocess.Popen(
        ["make", "run", "FLOW=cat-fact/on-demand", f"PARAMS={slow}"],
        cwd=stack.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert follower.stdout
    output = ""
    while "Beginning flow run" not in output:
        line = follower.stdout.readline()
        assert line, output
        output += line
    os.killpg(follower.pid, signal.SIGINT)
    output += follower.communicate(timeout=60)[0]
    assert follower.returncode != 0
    assert "The run goes on" in output
    top = ("docker", "compose", "top", "server")
    eventually("no follower", 10, lambda: "ops.run" not in stack.run(*top).stdout or None)
    [run] = re.findall(r"/flow-run/([0-9a-f-]{36})\n", output)[:1]
    assert stack.finished(run)["state_type"] == "COMPLETED"
