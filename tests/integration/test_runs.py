"""What a flow run can be asked for: the containers' own, shorter command gives all of it.

Each line of stock Prefect's ``prefect flow-run execute``: cancelling, crash detection, hooks,
heartbeats, suspend and resume, pull steps; and what that one can't: the exact time.
"""

import os
import random
import re
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.stack import FINAL, Stack, docker, eventually

PROBE = Path(__file__).with_name("probe.py")
DEPLOYMENTS = """
  - name: test
    entrypoint: flows/probe.py:probe
    work_pool: *docker-pool
  - name: pulled
    entrypoint: flows/probe.py:probe
    pull: # like git_clone: into the folder where it runs
      - prefect.deployments.steps.run_shell_script:
          script: cp -r /app/flows flows
    work_pool: *docker-pool
  - name: forked
    entrypoint: flows/probe.py:probe
    work_pool: *fork-pool
"""
BOTH = pytest.mark.parametrize("name", ["probe/test", "probe/forked"])
HOOK = "Hook 'told' finished running successfully"
DUE = re.compile(r"first line at ([\d.]+), due ([\d.]+)")


@pytest.fixture(scope="module")
def probes(stack: Stack, first_run: dict[str, Any]) -> Iterator[Stack]:
    """The stack with deployments of the probe; afterwards as it was."""
    project = stack.folder / "prefect.yaml"
    original = project.read_text()
    module = stack.folder / "flows/probe.py"
    shutil.copy(PROBE, module)
    project.write_text(original + DEPLOYMENTS)
    stack.make("deploy")
    yield stack
    project.write_text(original)
    module.unlink()
    for name in ("test", "pulled", "forked"):
        stack.api("DELETE", f"/deployments/{stack.deployment(f'probe/{name}')['id']}")
    stack.make("deploy")


def cancel(stack: Stack, run: str) -> None:
    """As the UI does."""
    state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    stack.api("POST", f"/flow_runs/{run}/set_state", state)


def due(stack: Stack, seconds: float, name: str = "probe/test") -> str:
    """A run of the probe that is scheduled for a whole second from now on; its id."""
    when = (datetime.now(UTC) + timedelta(seconds=seconds)).replace(microsecond=0)
    return stack.start(name, at=when)


def states(stack: Stack, run: str) -> list[str]:
    """The names of the states that a run has been in."""
    return [state["name"] for state in stack.api("GET", f"/flow_run_states/?flow_run_id={run}")]


@BOTH
def test_a_run_that_is_cancelled(probes: Stack, name: str) -> None:
    """Cancelled at once, its `finally` and its hook run, its container gone."""
    run = probes.start(name, how="sleeps")
    probes.said(run, "first line")
    cancel(probes, run)
    assert probes.finished(run, 30)["state_type"] == "CANCELLED"
    for text in ("put away", HOOK):
        probes.said(run, text)
    probes.cleared(run)
    assert probes.logs(run).count(HOOK) == 1


def test_a_run_that_is_cancelled_before_its_time(probes: Stack) -> None:
    run = due(probes, 25)
    probes.container(run)
    cancel(probes, run)
    assert probes.finished(run, 30)["state_type"] == "CANCELLED"
    probes.cleared(run)
    assert "first line" not in probes.logs(run)


def test_runs_that_are_cancelled_while_nobody_listens(probes: Stack) -> None:
    """The worker that comes back settles it."""
    run = probes.start("probe/test", how="sleeps")
    probes.said(run, "first line")
    probes.run("docker", "compose", "stop", "worker")
    cancel(probes, run)
    probes.run("docker", "compose", "start", "worker")
    assert probes.finished(run, 60)["state_type"] == "CANCELLED"
    probes.cleared(run)


@pytest.mark.parametrize(("how", "status"), [("is killed", "-9"), ("leaves", "3"), ("eats", "-9")])
def test_a_run_whose_process_dies(probes: Stack, how: str, status: str) -> None:
    """Crashed with the reason, and its hook is run by another process."""
    limits = {"mem_limit": "256m", "memswap_limit": "256m"}
    run = probes.start("probe/test", limits, how=how)
    ended = probes.finished(run, 60)
    assert ended["state_type"] == "CRASHED"
    assert f"status code: {status}." in ended["state"]["message"]
    probes.said(run, HOOK)
    probes.cleared(run)


@pytest.mark.parametrize(
    ("name", "job"),
    [
        ("probe/test", {"image": "nowhere:1", "image_pull_policy": "Never"}),
        ("probe/forked", {"working_dir": "/nowhere"}),
    ],
)
def test_a_run_that_cannot_begin(probes: Stack, name: str, job: dict[str, Any]) -> None:
    """It has crashed, once: another process would, too."""
    run = probes.start(name, job)
    assert probes.finished(run, 60)["state_type"] == "CRASHED"
    time.sleep(5)
    assert states(probes, run).count("Pending") == 1
    assert probes.api("GET", f"/flow_runs/{run}")["state_type"] == "CRASHED"


def test_a_run_whose_container_is_stopped(probes: Stack) -> None:
    run = probes.start("probe/test", how="sleeps")
    probes.said(run, "first line")
    docker("stop", probes.container(run))
    assert probes.finished(run, 30)["state_type"] == "CRASHED"
    for text in ("put away", HOOK):
        probes.said(run, text)


def test_a_run_whose_container_is_stopped_before_its_time(probes: Stack) -> None:
    """Nothing was begun, so nothing has crashed: another container takes it."""
    run = due(probes, 15)
    first = probes.container(run)
    docker("stop", first)
    assert probes.finished(run, 60)["state_type"] == "COMPLETED"
    assert states(probes, run).count("Running") == 1
    probes.said(run, "first line")
    assert probes.logs(run).count("first line") == 1


@BOTH
def test_a_run_that_suspends_itself(probes: Stack, name: str) -> None:
    """It leaves its container, and goes on in another one."""
    run = probes.start(name, how="suspends")
    eventually(
        "a suspended run",
        60,
        lambda: probes.api("GET", f"/flow_runs/{run}")["state_name"] == "Suspended" or None,
    )
    probes.cleared(run)
    probes.api("POST", f"/flow_runs/{run}/resume")
    assert probes.finished(run, 60)["state_type"] == "COMPLETED"
    probes.said(run, "resumed")


@BOTH
def test_a_run_that_is_suspended(probes: Stack, name: str) -> None:
    """From the UI: it ends before its next task."""
    run = probes.start(name, how="steps")
    probes.said(run, "Finished in state Completed()")
    state = {"state": {"type": "PAUSED", "name": "Suspended"}}
    probes.api("POST", f"/flow_runs/{run}/set_state", state)
    probes.said(run, "Finished in state Suspended", 15)
    probes.cleared(run)
    assert probes.api("GET", f"/flow_runs/{run}")["state_name"] == "Suspended"


def test_pull_steps_and_heartbeats(probes: Stack) -> None:
    run = probes.start("probe/pulled")
    assert probes.finished(run, 60)["state_type"] == "COMPLETED"
    probes.said(run, "in /tmp/prefect-flow-run-")
    body = {
        "filter": {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{run}"]},
        }
    }
    eventually("a heartbeat", 30, lambda: probes.api("POST", "/events/filter", body)["total"])


def test_a_cancelled_run_of_the_stock_command(probes: Stack) -> None:
    """An image of somebody else's brings Prefect's own command, which cancels by itself."""
    stock = {"env": {"PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES": "false"}}
    run = probes.start("probe/test", stock, how="sleeps")
    probes.said(run, "first line")
    cancel(probes, run)
    assert probes.finished(run, 60)["state_type"] == "CANCELLED"
    probes.said(run, "put away")
    probes.cleared(run, 60)


def test_a_flow_begins_at_its_time_and_never_before(probes: Stack) -> None:
    """Its container waits for it; a busy machine may make it late, nothing makes it early."""
    runs = [due(probes, 15 + 2 * number) for number in range(5)]
    first = probes.api("GET", f"/flow_runs/{runs[0]}")
    containers = {probes.container(run) for run in runs}
    assert len(containers) == len(runs)
    assert datetime.now(UTC) < datetime.fromisoformat(first["expected_start_time"])
    for run in runs:
        ended = probes.finished(run, 90)
        assert ended["state_type"] == "COMPLETED"
        probes.said(run, "first line")
        (found,) = DUE.findall(probes.logs(run))
        first_line, scheduled = map(float, found)
        assert 0 <= first_line - scheduled < 20
        began, due_at = (
            datetime.fromisoformat(ended[key]) for key in ("start_time", "expected_start_time")
        )
        assert began >= due_at


# ── the fork pool alone ──

FORK_WORKER = "fork-worker"


@pytest.fixture
def quiet(probes: Stack) -> Iterator[Stack]:
    """The stack, whose fork worker has as many processes and files afterwards as before."""
    before = processes(probes)
    yield probes
    eventually(f"{before} processes", 20, lambda: processes(probes) == before or None)
    assert "prefect-fork-" not in in_fork_worker(probes, "ls", "/tmp")  # noqa: S108


def in_fork_worker(stack: Stack, *command: str) -> str:
    """What a command in the fork worker's container prints."""
    done = stack.run("docker", "compose", "exec", "-T", FORK_WORKER, *command)
    assert done.returncode == 0, done.stdout
    return done.stdout


def processes(stack: Stack) -> int:
    """How many processes the fork worker's container has."""
    found = stack.run("docker", "compose", "ps", "--quiet", FORK_WORKER).stdout.strip()
    return len(docker("top", found, "-o", "pid").split())


@pytest.mark.parametrize(
    ("how", "job", "state", "message"),
    [
        ("is killed", {}, "CRASHED", "status code: -9."),
        ("is broken", {}, "CRASHED", "status code: -11."),
        ("leaves", {}, "CRASHED", "status code: 3."),
        ("exits", {}, "CRASHED", "exit"),
        ("eats", {"memory_limit": 200}, "FAILED", "MemoryError"),
        ("eats all", {}, "CRASHED", "status code: -9."),
        ("is deaf", {"time_limit": 3}, "CRASHED", "reached its time limit of 3 s"),
        ("multiplies", {}, "COMPLETED", ""),
        ("floods", {}, "COMPLETED", ""),
        ("is disguised", {"stream_output": False}, "COMPLETED", ""),
        ("completes", {"working_dir": "/nowhere"}, "CRASHED", "found none at /nowhere"),
    ],
)
def test_a_forked_run_that_ends_badly_harms_nobody(
    quiet: Stack, how: str, job: dict[str, Any], state: str, message: str
) -> None:
    """Its state says what happened; nothing is left of it, and another run goes on."""
    other = quiet.start("probe/forked", how="steps")
    quiet.said(other, "first line")
    run = quiet.start("probe/forked", job, how=how)
    ended = quiet.finished(run, 60)
    assert (ended["state_type"], message in (ended["state"]["message"] or "")) == (state, True), (
        ended["state"]
    )
    assert quiet.api("GET", f"/flow_runs/{other}")["state_type"] == "RUNNING"
    cancel(quiet, other)
    quiet.finished(other, 30)


ENDINGS: list[tuple[str, dict[str, Any], str]] = [
    ("is killed", {}, "CRASHED"),
    ("is broken", {}, "CRASHED"),
    ("leaves", {}, "CRASHED"),
    ("exits", {}, "CRASHED"),
    ("eats", {"memory_limit": 200}, "FAILED"),
    ("eats all", {}, "CRASHED"),
    ("is deaf", {"time_limit": 3}, "CRASHED"),
    ("multiplies", {}, "COMPLETED"),
    ("floods", {"stream_output": False}, "COMPLETED"),
    ("is disguised", {}, "COMPLETED"),
    ("completes", {"working_dir": "/nowhere"}, "CRASHED"),
]


def memory(stack: Stack, service: str) -> float:
    """What a service's container uses, in MiB."""
    found = stack.run("docker", "compose", "ps", "--quiet", service).stdout.strip()
    used = docker("stats", "--no-stream", "--format", "{{.MemUsage}}", found).split("/")[0].strip()
    return float(used.removesuffix("MiB"))


@pytest.mark.timeout(3600)
def test_many_forked_runs_with_one_in_ten_ending_otherwise(quiet: Stack) -> None:
    """Every state right and nothing left, memory included. FORK_RUNS=2000 takes a quarter hour."""
    rest = int(os.environ.get("FORK_RUNS", "60"))
    chance = random.Random(rest)
    used: list[list[float]] = []
    while rest > 0:
        expected = {}
        for _ in range(20):
            odd = chance.random() < 0.1
            how, job, state = chance.choice(ENDINGS) if odd else ("completes", {}, "COMPLETED")
            expected[quiet.start("probe/forked", job, how=how)] = (state, how)
        those = {"flow_runs": {"id": {"any_": list(expected)}}}

        def look(those: Any = those) -> list[dict[str, Any]] | None:
            found = quiet.api("POST", "/flow_runs/filter", those)
            return found if all(run["state_type"] in FINAL for run in found) else None

        for run in eventually("20 final states", 120, look):
            state, how = expected[run["id"]]
            assert run["state_type"] == state, (how, run["state"])
        rest -= 20
        if not used or rest <= 0 or rest % 200 == 0:  # to look takes longer than the runs
            used.append([memory(quiet, name) for name in (FORK_WORKER, "server", "postgres")])
    print("MiB of fork worker, server, database:", *used)
    assert used[-1][0] < used[0][0] + 30


def test_a_job_variable_of_the_wrong_type(probes: Stack) -> None:
    with pytest.raises(requests.HTTPError) as refused:
        probes.start("probe/forked", {"memory_limit": "much"})
    assert "'memory_limit'" in refused.value.response.text


def test_a_forked_run_that_does_not_hear(quiet: Stack) -> None:
    """It is killed when its half minute is over, and its hook is run all the same."""
    run = quiet.start("probe/forked", how="is deaf")
    quiet.said(run, "first line")
    cancel(quiet, run)
    assert quiet.finished(run, 60)["state_type"] == "CANCELLED"
    quiet.said(run, HOOK)


def test_nothing_leaks_from_one_forked_run_to_the_next(quiet: Stack) -> None:
    found, chances = [], set()
    for _ in range(2):
        run = quiet.start("probe/forked", how="spoils")
        assert quiet.finished(run, 30)["state_type"] == "COMPLETED"
        quiet.said(run, "chance")
        lines = quiet.logs(run).splitlines()
        found.append(next(line for line in lines if line.startswith("found ")))
        chances |= {*next(line for line in lines if line.startswith("chance ")).split()[1:]}
    assert found[0] == found[1]
    assert len(chances) == 6


def test_a_forked_run_has_the_environment_that_it_was_given(quiet: Stack) -> None:
    given = {"env": {"ASKED": "1", "PREFECT_LOGGING_LEVEL": "DEBUG"}}
    run = quiet.start("probe/forked", given, how="spoils")
    assert quiet.finished(run, 30)["infrastructure_pid"].startswith("fork-worker-")
    quiet.said(run, '"ASKED"')
    debug = {"logs": {"flow_run_id": {"any_": [run]}, "level": {"le_": 10}}}
    assert quiet.api("POST", "/logs/filter", debug)


def has_last_lines(stack: Stack, run: str) -> bool | None:
    """Has the log what a run's task and its flow say at their end?"""
    return stack.logs(run).count("Finished in state Completed()") == 2 or None


def test_a_flow_says_the_same_in_both_pools(probes: Stack) -> None:
    """The same states, logs, artifacts and results."""
    told = []
    for name in ("probe/test", "probe/forked"):
        run = probes.start(name, how="answers")
        ended = probes.finished(run, 60)
        eventually("the last lines", 30, partial(has_last_lines, probes, run))
        of_run = {"artifacts": {"flow_run_id": {"any_": [run]}}}
        logs = re.sub(r"answer-\w+|[\d.]{5,}|[0-9a-f-]{36}", "…", probes.logs(run)).splitlines()
        told.append(
            {
                "states": states(probes, run),
                "logs": sorted(
                    line for line in logs if "orker" not in line and ended["name"] not in line
                ),
                "artifacts": sorted(
                    (found["key"] or "", found["type"], found["data"] if found["key"] else "")
                    for found in probes.api("POST", "/artifacts/filter", of_run)
                ),
                "result": sorted(ended["state"]["data"]),
            }
        )
    assert told[0] == told[1]
    assert told[0]["states"] == ["Scheduled", "Pending", "Running", "Completed"]


def test_a_forked_flow_begins_at_its_time_and_never_before(quiet: Stack) -> None:
    runs = [due(quiet, 4 + number, "probe/forked") for number in range(5)]
    for run in runs:
        assert quiet.finished(run, 60)["state_type"] == "COMPLETED"
        quiet.said(run, "first line")
        (found,) = DUE.findall(quiet.logs(run))
        first_line, scheduled = map(float, found)
        assert 0 <= first_line - scheduled < 5


def test_a_fork_worker_that_is_stopped(probes: Stack) -> None:
    """What hasn't begun is handed back, what has gets its time; the next worker goes on."""
    short = probes.start("probe/forked", how="steps")
    probes.said(short, "first line")
    waiting = due(probes, 9, "probe/forked")
    eventually(
        "a run that waits",
        20,
        lambda: probes.api("GET", f"/flow_runs/{waiting}")["state_name"] == "Pending" or None,
    )
    probes.run("docker", "compose", "stop", FORK_WORKER)
    assert probes.api("GET", f"/flow_runs/{waiting}")["state_type"] == "SCHEDULED"
    stopped = probes.api("GET", f"/flow_runs/{short}")
    assert stopped["state_type"] == "CRASHED"
    probes.run("docker", "compose", "start", FORK_WORKER)
    assert probes.finished(waiting, 60)["state_type"] == "COMPLETED"
    assert states(probes, waiting).count("Running") == 1


def test_a_preload_that_does_not_exist(stack: Stack, first_run: dict[str, Any]) -> None:
    command = ["run", "--rm", "--no-deps", "-e", "PREFECT_FORK_PRELOAD=requests,nosuch"]
    done = stack.run("docker", "compose", *command, FORK_WORKER)
    assert done.returncode == 1
    assert "expected: to preload nosuch" in done.stdout
    assert "No module named 'nosuch'" in done.stdout
    assert "Traceback" not in done.stdout


def test_three_fork_workers_share_the_runs(probes: Stack) -> None:
    scaled = ["docker", "compose", "up", "--detach"]
    probes.run(*scaled, "--scale", f"{FORK_WORKER}=3", FORK_WORKER)
    runs = [probes.start("probe/forked") for _ in range(12)]
    for run in runs:
        assert probes.finished(run, 60)["state_type"] == "COMPLETED"
        assert states(probes, run).count("Running") == 1
    probes.run(*scaled, "--scale", f"{FORK_WORKER}=1", FORK_WORKER)
