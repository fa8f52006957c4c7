"""What a flow run can be asked for: the containers' own, shorter command gives all of it.

Each line of stock Prefect's ``prefect flow-run execute``: cancelling, crash detection, hooks,
heartbeats, suspend and resume, pull steps; and what that one can't: the exact time.
"""

import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.stack import Stack, docker, eventually

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
"""
HOOK = "Hook 'told' finished running successfully"
DUE = re.compile(r"first line at ([\d.]+), due ([\d.]+)")


@pytest.fixture(scope="module")
def probes(stack: Stack, first_run: dict[str, Any]) -> Iterator[Stack]:
    """The stack with two deployments of the probe; afterwards as it was."""
    project = stack.folder / "prefect.yaml"
    original = project.read_text()
    module = stack.folder / "flows/probe.py"
    shutil.copy(PROBE, module)
    project.write_text(original + DEPLOYMENTS)
    stack.make("deploy")
    yield stack
    project.write_text(original)
    module.unlink()
    for name in ("test", "pulled"):
        stack.api("DELETE", f"/deployments/{stack.deployment(f'probe/{name}')['id']}")
    stack.make("deploy")


def cancel(stack: Stack, run: str) -> None:
    """As the UI does."""
    state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    stack.api("POST", f"/flow_runs/{run}/set_state", state)


def due(stack: Stack, seconds: float) -> str:
    """A run of the probe that is scheduled for a whole second from now on; its id."""
    when = (datetime.now(UTC) + timedelta(seconds=seconds)).replace(microsecond=0)
    return stack.start("probe/test", at=when)


def states(stack: Stack, run: str) -> list[str]:
    """The names of the states that a run has been in."""
    return [state["name"] for state in stack.api("GET", f"/flow_run_states/?flow_run_id={run}")]


def test_a_run_that_is_cancelled(probes: Stack) -> None:
    """Cancelled at once, its `finally` and its hook run, its container gone."""
    run = probes.start("probe/test", how="sleeps")
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
    probes.said(run, "deployment steps completed")
    docker("stop", first)
    assert probes.finished(run, 60)["state_type"] == "COMPLETED"
    assert states(probes, run).count("Running") == 1
    probes.said(run, "first line")
    assert probes.logs(run).count("first line") == 1


def test_a_run_that_is_suspended(probes: Stack) -> None:
    """It leaves its container, and goes on in another one."""
    run = probes.start("probe/test", how="suspends")
    eventually(
        "a suspended run",
        60,
        lambda: probes.api("GET", f"/flow_runs/{run}")["state_name"] == "Suspended" or None,
    )
    probes.cleared(run)
    probes.api("POST", f"/flow_runs/{run}/resume")
    assert probes.finished(run, 60)["state_type"] == "COMPLETED"
    probes.said(run, "resumed")


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
        assert 0 <= first_line - scheduled < 5
        began, due_at = (
            datetime.fromisoformat(ended[key]) for key in ("start_time", "expected_start_time")
        )
        assert began >= due_at
