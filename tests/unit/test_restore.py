"""restore.py: what becomes of a run that the backup has in an open state."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateDetails, StateType

from ops.restore import verdict

NOW = datetime(2026, 11, 22, 9, tzinfo=UTC)
PAST, FUTURE = NOW - timedelta(hours=1), NOW + timedelta(seconds=20)


def judged(
    state: StateType,
    due: datetime = PAST,
    *,
    begun: bool = False,
    replay: bool = False,
    reschedule: bool = False,
) -> str | None:
    run = FlowRun(
        flow_id=uuid4(),
        state=State(type=state, state_details=StateDetails(pause_reschedule=reschedule)),
        expected_start_time=due,
        start_time=PAST if begun else None,
    )
    found = verdict(run, NOW, "yesterday", replay)
    return found.name if found else None


@pytest.mark.parametrize("state", [StateType.SCHEDULED, StateType.PENDING])
def test_what_had_not_begun_and_is_over_is_skipped(state: StateType) -> None:
    assert judged(state) == "Skipped"


@pytest.mark.parametrize("replay", [True, False])
def test_what_had_begun_is_crashed_even_in_a_replay(replay: bool) -> None:
    for state in (StateType.RUNNING, StateType.PAUSED, StateType.SCHEDULED, StateType.PENDING):
        assert judged(state, begun=True, replay=replay) == "Interrupted"
    # A retry that waits for its time waits in a process that is gone.
    assert judged(StateType.SCHEDULED, FUTURE, begun=True, replay=replay) == "Interrupted"


def test_a_time_to_come_stays() -> None:
    assert judged(StateType.SCHEDULED, FUTURE) is None
    # Taken by a worker ahead of its time; that worker is gone.
    assert judged(StateType.PENDING, FUTURE) == "Scheduled"


def test_replay_leaves_to_the_workers_what_had_not_begun() -> None:
    assert judged(StateType.SCHEDULED, replay=True) is None
    assert judged(StateType.PENDING, replay=True) == "Scheduled"


def test_a_suspended_run_waits_on_for_who_resumes_it() -> None:
    assert judged(StateType.PAUSED, begun=True, reschedule=True) is None


def test_a_run_that_was_being_cancelled_is_cancelled() -> None:
    assert judged(StateType.CANCELLING, begun=True) == "Cancelled"


@pytest.mark.parametrize(
    "state", [StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED]
)
def test_a_final_state_stays(state: StateType) -> None:
    assert judged(state, begun=True) is None
