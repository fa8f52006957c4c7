"""What the parent of a dead flow run's process makes of it."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, State, StateDetails
from prefect.states import AwaitingRetry, Cancelling, Completed, Crashed, Pending, Running
from prefect_fork.execute.report import is_settled, waits_for

SOON, BEFORE = (datetime.now(UTC) + timedelta(days=days) for days in (1, -1))


def run_in(state: State, retry_type: str | None = None) -> FlowRun:
    policy = FlowRunPolicy.model_validate({"retry_type": retry_type})
    return FlowRun(flow_id=uuid4(), name="a run", state=state, empirical_policy=policy)


def pending(due: datetime | None) -> State:
    return Pending(state_details=StateDetails.model_validate({"scheduled_time": due}))


@pytest.mark.parametrize(
    ("state", "retry_type", "settled"),
    [
        (Completed(), None, True),
        (Crashed(), None, True),
        (Running(), None, False),
        (Cancelling(), None, False),
        (pending(BEFORE), None, False),
        (AwaitingRetry(), "reschedule", True),
        (AwaitingRetry(), "in_process", False),
    ],
)
def test_what_is_settled(state: State, retry_type: str | None, settled: bool) -> None:
    assert is_settled(run_in(state, retry_type), state) is settled


@pytest.mark.parametrize(
    ("state", "due"),
    [
        (pending(SOON), SOON),
        (pending(BEFORE), None),
        (pending(None), None),
        (Running(), None),
    ],
)
def test_what_waits_for_its_time(state: State, due: datetime | None) -> None:
    assert waits_for(state) == due
