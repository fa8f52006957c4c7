"""Flow runs: created, waited for, and asked when they began and ended."""

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from bench.problem import Problem
from bench.stacks import BenchStack
from tests.stack import FINAL

BEGAN = re.compile(r"^began (\d+\.\d+)$", re.MULTILINE)
LOGS_SECONDS = 30  # how long after its end a run's log may be incomplete


def create(stack: BenchStack, at: float | None = None) -> str:
    """Creates a run of the deployment; returns its id.

    Args:
        stack: Where.
        at: When it is due, in seconds since 1970; None for now.
    """
    state: dict[str, Any] = {"type": "SCHEDULED"}
    if at is not None:
        due = datetime.fromtimestamp(at, UTC).isoformat()
        state["state_details"] = {"scheduled_time": due}
    path = f"/deployments/{stack.deployment_id}/create_flow_run"
    return str(stack.api("POST", path, {"state": state})["id"])


def completed(
    stack: BenchStack, ids: Sequence[str], seconds: float, every: float = 1
) -> list[dict[str, Any]]:
    """Waits for the end of all; returns them in the order of their ids.

    Args:
        stack: Whose runs.
        ids: At most 200.
        seconds: How long to wait.
        every: Seconds between two looks, which cost the server something, too.

    Raises:
        Problem: One of them ended badly, or not in time.
    """
    those = {"flow_runs": {"id": {"any_": list(ids)}, "state": {"type": {"any_": sorted(FINAL)}}}}
    deadline = time.monotonic() + seconds
    while (ended := stack.api("POST", "/flow_runs/count", those)) < len(ids):
        if time.monotonic() > deadline:
            raise Problem(
                f"{len(ids)} runs of {stack.side} ended within {seconds:.0f} s",
                f"{ended} of them",
                "quiet the machine, then: make bench",
            )
        time.sleep(every)
    runs = {run["id"]: run for run in stack.api("POST", "/flow_runs/filter", those)}
    for run in runs.values():
        if run["state_type"] != "COMPLETED":
            state = run["state"]
            raise Problem(
                f"run {run['name']} of {stack.side} Completed",
                f"{state['name']}: {state['message']}",
            )
    return [runs[run_id] for run_id in ids]


def ended(run: dict[str, Any]) -> float:
    """When a run came into its final state, in seconds since 1970."""
    return datetime.fromisoformat(run["state"]["timestamp"]).timestamp()


def began(stack: BenchStack, run_id: str) -> float:
    """When the first line of a run's flow ran, in seconds since 1970, as its log says."""
    deadline = time.monotonic() + LOGS_SECONDS
    while not (found := BEGAN.search(stack.logs(run_id))):
        if time.monotonic() > deadline:
            raise Problem(
                f"the line `began …` in the log of run {run_id} of {stack.side}",
                "none",
            )
        time.sleep(0.5)
    return float(found[1])


def drained(stack: BenchStack, seconds: float = 60) -> None:
    """Waits until the containers of all runs have gone."""
    deadline = time.monotonic() + seconds
    while left := stack.flow_containers():
        if time.monotonic() > deadline:
            raise Problem(
                f"no flow containers of {stack.side} {seconds:.0f} s after the runs' end",
                f"{len(left)}",
            )
        time.sleep(0.5)


def late(stack: BenchStack, dues: Sequence[float], seconds: float) -> list[float]:
    """Runs that are due at these times; returns how late each one's first line ran, in seconds.

    Args:
        stack: Where.
        dues: In seconds since 1970, in order.
        seconds: How long after the last one's time all have to have ended.
    """
    ids = [create(stack, at) for at in dues]
    time.sleep(max(0.0, dues[-1] - time.time()))
    completed(stack, ids, seconds)
    found = [began(stack, run_id) - at for run_id, at in zip(ids, dues, strict=True)]
    drained(stack)
    return found
