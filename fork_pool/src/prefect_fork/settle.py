"""What becomes of a flow run whose process or container is gone.

A run that never began its flow is started again. One that may have begun it is Crashed; whether it
is tried once more, the flow's own `retries` decide.
"""

import math
import os
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateName,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import Abort
from prefect.logging import get_logger
from prefect.states import AwaitingRetry, Cancelled, Crashed, Scheduled
from prefect.utilities.engine import propose_state

# What kills a run's process before its flow begins may do so every time: too little memory, say.
RESTARTS = 3
AGAIN = "Its flow hadn't begun; it is started again."
# The server marks those that nobody took so long after their time (docker-compose.yml); it can't
# where it was itself away, or where a run was lost by who had taken it.
LATE_SECONDS = 30
# For so long after its end a crashed run is looked at, should nobody have been there to see it.
RETRY_HOURS = 1
# A run has lost its process if for so long none was seen. A worker whose network is cut for a
# minute is back by then: its heartbeats are 20 s apart, and the server waits for three of them.
LOST_SECONDS = 35
PAGE = 200  # the server's own limit
# The state in which a worker took the run that a process is for: see `is_ours`.
TAKEN_BY = "PREFECT__FLOW_RUN_TAKEN_BY"

OPEN = FlowRunFilterState.model_validate(
    {
        "operator": "or_",
        "type": {"any_": ["PENDING", "RUNNING", "CANCELLING", "PAUSED"]},
        "name": {"any_": ["AwaitingRetry"]},
    }
)
# By its name: who gives such a state another one means it to stay.
CRASHED = FlowRunFilterState(name=FlowRunFilterStateName(any_=["Crashed"]))

logger = get_logger("prefect_fork")


async def open_runs(client: PrefectClient, work_pool: str) -> list[FlowRun]:
    """The work pool's runs that were taken and haven't ended, the suspended, too."""
    return await _runs(client, work_pool, FlowRunFilter(state=OPEN))


async def settle(client: PrefectClient, run_id: UUID, why: str) -> None:
    """Says what became of a run whose process is gone; what it has said itself stays."""
    run = await client.read_flow_run(run_id)
    state = run.state
    if state is None or not is_open(run):
        return
    if state.is_cancelling():
        await client.set_flow_run_state(run_id, Cancelled(message="Cancelled."), force=True)
        return
    logger.warning("Flow run %s: %s", run.name, why)
    if not (state.is_pending() and await start_again(client, run, why)):
        await leave_process(client, run)
        await client.set_flow_run_state(run_id, Crashed(message=why), force=True)
        await crash_subflows(client, run_id)


async def leave_process(client: PrefectClient, run: FlowRun) -> None:
    """Has a later retry be for any process to take: the one that it was for is gone."""
    if run.empirical_policy.retry_type == "in_process":
        run.empirical_policy.retry_type = None
        await client.update_flow_run(run.id, empirical_policy=run.empirical_policy)


async def crash_subflows(client: PrefectClient, run_id: UUID) -> None:
    """Crashes the subflow runs that were in the process of a run that has crashed."""
    of_run = FlowRunFilter(
        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run_id]), state=OPEN
    )
    for run in await client.read_flow_runs(flow_run_filter=of_run):
        if run.deployment_id is None:  # another one has a process of its own
            await client.set_flow_run_state(
                run.id, Crashed(message="Its parent's process is gone."), force=True
            )
            await crash_subflows(client, run.id)


async def start_again(client: PrefectClient, run: FlowRun, why: str) -> bool:
    """Hands back a run that never began its flow, unless that happened too often.

    Returns:
        Will another process take it?
    """
    states = await client.read_flow_run_states(run.id)
    if sum((state.message or "").endswith(AGAIN) for state in states) >= RESTARTS:
        return False
    await hand_back(client, run, f"{why} {AGAIN}")
    return True


async def hand_back(client: PrefectClient, run: FlowRun, why: str | None = None) -> None:
    """Gives back a run that was taken and not begun, for its own time."""
    due = (run.state and run.state.state_details.scheduled_time) or run.expected_start_time
    again: State[object] = Scheduled(scheduled_time=due, message=why)
    await propose_state(client, again, flow_run_id=run.id)


async def retry_crashed(client: PrefectClient, work_pool: str) -> None:
    """Has crashed runs tried again whose flows have retries left; Prefect does so for failed ones.

    One whose flow never began has crashed for what it is made of, and would again.
    (The rule for failed runs is `RetryFailedFlows` of the server's core policy.)
    """
    since = datetime.now(UTC) - timedelta(hours=RETRY_HOURS)
    lately = FlowRunFilterEndTime(after_=since)
    for run in await _runs(client, work_pool, FlowRunFilter(state=CRASHED, end_time=lately)):
        policy = run.empirical_policy
        if run.state is None or not 0 < run.run_count <= (policy.retries or 0):
            continue
        now = await client.read_flow_run(run.id)
        if taken_by(now) != taken_by(run):  # another worker was quicker
            continue
        when = datetime.now(UTC) + timedelta(seconds=policy.retry_delay or 0)
        again: State[object] = AwaitingRetry(scheduled_time=when, message=run.state.message)
        try:
            await propose_state(client, again, flow_run_id=run.id)
        except Abort as error:
            logger.warning("Flow run %s is not tried again: %s", run.name, error)


def is_open(run: FlowRun) -> bool:
    """Is there, or should there be, a process at work for this run?

    A retry in the same process waits in a state of type Scheduled, and is nobody else's to take.
    """
    if run.state is None or run.state.is_final() or run.state.name == "Suspended":
        return False
    return not run.state.is_scheduled() or run.empirical_policy.retry_type == "in_process"


def is_late(due: datetime | None) -> bool:
    """Has a run that has yet to begin missed its time?"""
    return due is not None and (datetime.now(UTC) - due).total_seconds() > LATE_SECONDS


def age(run: FlowRun) -> float:
    """For how many seconds a run that was taken has been waiting for its process.

    A time in the future is that of a clock that was wrong: by whatever, it wasn't taken just now.
    """
    if run.state is None or not run.state.is_pending():
        return math.inf
    return abs((datetime.now(UTC) - run.state.timestamp).total_seconds())


def taken_by(run: FlowRun) -> str:
    """Names the state in which a run was taken: that of its process's, and of no other."""
    return str(run.state.id if run.state else "")


def is_ours(run: FlowRun) -> bool:
    """Is a run still as it was when it was taken for this process?

    Whoever thought it lost may have started it again, and two would run it.
    """
    return os.environ.get(TAKEN_BY, taken_by(run)) == taken_by(run)


async def _runs(client: PrefectClient, work_pool: str, flow_runs: FlowRunFilter) -> list[FlowRun]:
    found: list[FlowRun] = []
    while page := await client.read_flow_runs(
        flow_run_filter=flow_runs,
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[work_pool])),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=PAGE,
        offset=len(found),
    ):
        found += page
        if len(page) < PAGE:
            break
    return found
