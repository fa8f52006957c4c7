"""A worker that dies leaves containers and runs behind; the next one settles them."""

from typing import Any

from tests.stack import ACTIVITY_URL, DAILY, Stack, docker


def test_the_next_worker_settles_what_a_killed_one_left(
    stack: Stack, first_run: dict[str, Any]
) -> None:
    lives, killed, removed = (
        stack.start(DAILY, url=f"{ACTIVITY_URL}?fault_delay=40&fault_times=1&fault_key={name}")
        for name in ("lives", "killed", "removed")
    )
    containers = {run: stack.container(run) for run in (lives, killed, removed)}
    for run in containers:
        stack.running(run)
    stack.run("docker", "compose", "kill", "worker")
    docker("kill", containers[killed])
    docker("rm", "--force", containers[removed])
    stack.run("docker", "compose", "start", "worker")

    assert "exit code 137" in stack.finished(killed, 60)["state"]["message"]
    assert stack.finished(lives, 120)["state_type"] == "COMPLETED"
    assert stack.finished(removed, 120)["state"]["message"] == "Its process is gone."
    for run in containers:
        stack.cleared(run)


def test_a_container_that_is_taken_away_makes_a_crashed_run(
    stack: Stack, first_run: dict[str, Any]
) -> None:
    run = stack.start(DAILY, url=f"{ACTIVITY_URL}?fault_delay=60")
    stack.running(run)
    docker("rm", "--force", stack.container(run))
    assert stack.finished(run, 60)["state_type"] == "CRASHED"


def test_a_container_that_is_taken_away_before_its_flow_begins_is_made_again(
    stack: Stack, first_run: dict[str, Any]
) -> None:
    run = stack.start(DAILY)
    docker("rm", "--force", stack.container(run))
    assert stack.finished(run, 60)["state_type"] == "COMPLETED"
    states = stack.api("GET", f"/flow_run_states/?flow_run_id={run}")
    assert [state["type"] for state in states].count("PENDING") == 2
