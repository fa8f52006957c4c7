"""What `make restore` asks of Prefect: to run nothing twice, and to tell what is there.

``settle CREATED [REPLAY]`` runs before any worker does, on a server of its own without services: a
run that may have gone on after the backup is given a final state. ``skip RUN…`` does so for what
a failed upgrade's new version had begun. ``tell`` says what there is.
"""

import asyncio
import contextlib
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Crashed, Scheduled

from ops.stack import scheduled_deployments

PAGE = 200  # the server's own limit
SERVER_SECONDS = 120
OPEN = [
    StateType.SCHEDULED,
    StateType.PENDING,
    StateType.RUNNING,
    StateType.CANCELLING,
    StateType.PAUSED,
]


async def settle(created: str, replay: bool) -> None:
    """Gives every run that must not go on a final state, and frees the slots that runs held.

    Args:
        created: When the backup was made, for the states' messages.
        replay: Leave to the workers what had not begun.
    """
    now = datetime.now(UTC)
    told: Counter[str] = Counter()
    async with server(), get_client() as client:
        for run in await open_runs(client):
            if state := verdict(run, now, created, replay):
                if run.empirical_policy.retry_type:  # a retry would be for the process it had
                    run.empirical_policy.retry_type = None
                    await client.update_flow_run(run.id, empirical_policy=run.empirical_policy)
                await client.set_flow_run_state(run.id, state, force=True)
                told[state.name or ""] += 1
        await free_slots(client)
    for name, count in sorted(told.items()):
        print(f"  ok    runs that were open in the backup and are {name} now: {count}")
    if not told:
        print("  ok    open runs are as they were")


async def skip(runs: list[str]) -> None:
    """Cancels those of these runs that may go on: what an upgrade's new version had begun."""
    async with server(), get_client() as client:
        for run_id in runs:
            with contextlib.suppress(ObjectNotFound):
                run = await client.read_flow_run(UUID(run_id))
                # A crashed one, the old version would retry.
                if run.state and (not run.state.is_final() or run.state.name == "Crashed"):
                    message = "The version whose upgrade failed had begun it."
                    state: State = Cancelled(name="Skipped", message=message)
                    await client.set_flow_run_state(run.id, state, force=True)


def verdict(run: FlowRun, now: datetime, created: str, replay: bool) -> State | None:
    """The state that a run of the backup is given; None if it stays as it is."""
    state = run.state
    if state is None or state.is_final():
        return None
    if state.is_cancelling():
        return Cancelled(message=f"It was being cancelled when the backup of {created} was made.")
    if state.is_paused():
        # A suspended run has no process; it waits in the database to be resumed.
        suspended = state.state_details.pause_reschedule
        return None if suspended else crashed(created)
    if state.is_running() or run.start_time is not None:
        return crashed(created)
    due = run.expected_start_time
    if replay or (due is not None and due > now):
        # A worker had taken it already: back to where it can be taken again.
        return Scheduled(scheduled_time=due) if state.is_pending() else None
    return Cancelled(
        name="Skipped",
        message=f"Its time was over when the backup of {created} was restored: "
        "it may have run since. Restored with REPLAY=1, it would run.",
    )


def crashed(created: str) -> State:
    """The state of a run that was at work."""
    return Crashed(
        name="Interrupted",  # the workers try again what has Crashed and has retries left
        message=f"It was at work when the backup of {created} was made; "
        "how it went on isn't in it.",
    )


async def open_runs(client: PrefectClient) -> list[FlowRun]:
    """Every run that isn't in a final state."""
    found: list[FlowRun] = []
    while page := await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=OPEN))
        ),
        sort=FlowRunSort.ID_DESC,
        limit=PAGE,
        offset=len(found),
    ):
        found += page
    return found


async def free_slots(client: PrefectClient) -> None:
    """Frees the slots of every concurrency limit: who held them is gone."""
    offset = 0
    while limits := await client.read_global_concurrency_limits(limit=PAGE, offset=offset):
        offset += len(limits)
        for limit in limits:
            if limit.active_slots:
                update = GlobalConcurrencyLimitUpdate(active_slots=0)
                await client.update_global_concurrency_limit(limit.name, update)
    offset = 0
    while tags := await client.read_concurrency_limits(limit=PAGE, offset=offset):
        offset += len(tags)
        for tag in tags:
            if tag.active_slots:
                await client.reset_concurrency_limit_by_tag(tag.tag)


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[None]:
    """A server in this container, for as long as the context lasts: it schedules and alerts nobody.

    Raises:
        RuntimeError: It doesn't answer; its own words are on standard error.
    """
    process = await asyncio.create_subprocess_exec(
        *("prefect", "server", "start", "--no-services", "--no-ui", "--host", "127.0.0.1"),
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        for _ in range(SERVER_SECONDS):
            if await asyncio.to_thread(ready):
                break
            if process.returncode is not None:
                raise RuntimeError(f"the server ended with {process.returncode}")
            await asyncio.sleep(1)
        else:
            raise RuntimeError(f"no answer from the server within {SERVER_SECONDS} s")
        yield
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def ready() -> bool:
    """Does the server answer, and its database?"""
    try:
        url = f"{get_current_settings().api.url}/ready"
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310  # our own server
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


async def tell() -> None:
    """Says what there is."""
    async with get_client() as client:
        counts = {
            "flow runs": await counted(client, "flow_runs"),
            "deployments": await counted(client, "deployments"),
            "of them scheduled": len(await scheduled_deployments(client)),
            "automations": await counted(client, "automations"),
            "blocks": await counted(client, "block_documents"),
        }
    print("\n==> Restored: " + ", ".join(f"{count} {what}" for what, count in counts.items()))


async def counted(client: PrefectClient, what: str) -> int:
    """How many of a kind the server has."""
    response = await client.request("POST", f"/{what}/count", json={})  # type: ignore[arg-type]
    response.raise_for_status()
    return int(response.json())


if __name__ == "__main__":
    if sys.argv[1] == "settle":
        asyncio.run(settle(sys.argv[2], replay=sys.argv[3:] == ["1"]))
    elif sys.argv[1] == "skip":
        asyncio.run(skip(sys.argv[2:]))
    else:
        asyncio.run(tell())
