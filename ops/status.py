"""Is everything right? The services, the worker's polling, the last and the next runs.

Reads `docker compose ps --all --format json` on standard input; the arguments are the services that
the Compose file has. Exit code 0 only if nothing is wrong.
"""

import asyncio
import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentTaskRunId,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from rich.console import Console
from rich.table import Table

from ops.stack import WORKERS, full_names, scheduled_deployments, waiting_runs

ONE_SHOTS = {"migrate", "deploy"}
POLL_SECONDS = 60  # a worker polls every few seconds; after a minute it isn't merely busy
ROWS = 5


async def main() -> int:
    """Prints one screen; returns the exit code."""
    containers = parse_containers(sys.stdin.read())
    now = datetime.now(UTC)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    console.print(services_table(containers))
    problems = service_problems(sys.argv[1:], containers)
    async with get_client() as client:
        console.print()
        for worker, pool in WORKERS.items():
            poll = await last_poll(client, pool)
            console.print(f"{worker}'s last poll: {ago(poll, now)}")
            problems += poll_problems(worker, pool, poll, now)
        names = await full_names(client)
        console.print(await last_runs_table(client, names, now))
        console.print(await next_runs_table(client, names, now))
        problems += await schedule_problems(client, names)
    for problem in problems:
        console.print(f"[red]✗[/] {problem}", soft_wrap=True)
    if not problems:
        console.print("[green]✓[/] everything is right")
    return 1 if problems else 0


def parse_containers(text: str) -> dict[str, dict[str, Any]]:
    """Containers by service, of several the worst.

    Compose prints a JSON list, or an object a line, by its version.
    """
    rows = json.loads(text) if text.startswith("[") else list(map(json.loads, text.splitlines()))
    right = [row for row in rows if row["State"] == "running" and row["Health"] == "healthy"]
    wrong = [row for row in rows if row not in right]
    return {row["Service"]: row for row in [*right, *wrong]}


def service_problems(expected: Iterable[str], containers: dict[str, dict[str, Any]]) -> list[str]:
    """What is wrong with the services; a one-shot is right when it has ended with 0."""
    problems = []
    for name in sorted(expected):
        found = containers.get(name)
        if found is None:
            problems.append(f"{name}: has no container. Next: make up")
        elif name in ONE_SHOTS:
            if found["State"] != "exited" or found["ExitCode"] != 0:
                problems.append(f"{name}: {found['Status']}. Next: docker compose logs {name}")
        elif found["State"] != "running":
            problems.append(f"{name}: is {found['State']}. Next: make up")
        elif found["Health"] != "healthy":
            problems.append(f"{name}: is {found['Health']}. Next: docker compose logs {name}")
    return problems


async def last_poll(client: PrefectClient, pool: str) -> datetime | None:
    """When a worker last asked the pool for work; None if none ever did, or there is no pool."""
    try:
        queues = await client.read_work_queues(work_pool_name=pool)
    except ObjectNotFound:
        return None
    return max((queue.last_polled for queue in queues if queue.last_polled), default=None)


def poll_problems(worker: str, pool: str, poll: datetime | None, now: datetime) -> list[str]:
    """What is wrong with a worker's polling."""
    if poll is None:
        return [f"{worker}: never polled the work pool {pool}. Next: docker compose logs {worker}"]
    if (now - poll).total_seconds() > POLL_SECONDS:
        return [f"{worker}: last polled {ago(poll, now)}. Next: docker compose restart {worker}"]
    return []


async def schedule_problems(client: PrefectClient, names: dict[UUID, str]) -> list[str]:
    """Schedules without a run waiting in the database, and runs whose time has passed."""
    problems = [
        f"{names[deployment.id]}: is scheduled, but no run of it waits in the database. "
        "Next: docker compose logs server"
        for deployment in await scheduled_deployments(client)
        if not await waiting_runs(client, 1, deployment)
    ]
    late = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Late"]))
        )
    )
    if late:
        problems.append(f"{len(late)} runs are late. Next: docker compose logs worker fork-worker")
    return problems


def services_table(containers: dict[str, dict[str, Any]]) -> Table:
    """A row a service."""
    table = Table("service", "state", "health", "ports", box=None, header_style="bold")
    for name, row in sorted(containers.items()):
        health = "done" if name in ONE_SHOTS and row["ExitCode"] == 0 else row["Health"]
        table.add_row(name, row["Status"].split(" (")[0], health, row.get("Ports", ""))
    return table


async def last_runs_table(client: PrefectClient, names: dict[UUID, str], now: datetime) -> Table:
    """The runs that began last."""
    begun = [state for state in StateType if state is not StateType.SCHEDULED]
    runs = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=begun)),
            parent_task_run_id=FlowRunFilterParentTaskRunId(is_null_=True),  # no subflows
        ),
        sort=FlowRunSort.START_TIME_DESC,
        limit=ROWS,
    )
    table = Table("last runs", "", "", "", box=None, header_style="bold")
    for run in runs:
        took = f"took {run.total_run_time.total_seconds():.1f} s"
        when = f"{ago(run.start_time, now)}, {took}"
        table.add_row(origin(run, names), run.name, run.state_name, when)
    return table


async def next_runs_table(client: PrefectClient, names: dict[UUID, str], now: datetime) -> Table:
    """The next run of each deployment, those due first."""
    table = Table("next runs", "", "", box=None, header_style="bold")
    told: set[UUID | None] = set()
    for run in await waiting_runs(client, limit=200):
        start = run.expected_start_time
        if start and run.deployment_id not in told and len(told) < ROWS:
            told.add(run.deployment_id)
            when = f"{start:%Y-%m-%d %H:%M:%S} UTC"
            table.add_row(origin(run, names), when, f"in {rough(start - now)}")
    return table


def origin(run: FlowRun, names: dict[UUID, str]) -> str:
    """The deployment that a run is of."""
    return names.get(run.deployment_id, "-") if run.deployment_id else "by hand"


def ago(moment: datetime | None, now: datetime) -> str:
    """How long ago, in words."""
    return "never" if moment is None else f"{rough(now - moment)} ago"


def rough(span: timedelta) -> str:
    """A time span in the one unit that fits."""
    seconds = span.total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
