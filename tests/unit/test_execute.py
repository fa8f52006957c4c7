"""What is made of a flow run whose process is gone."""

from datetime import UTC, datetime, timedelta
from unittest.mock import AsyncMock
from uuid import uuid4

import anyio
import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, State
from prefect.states import (
    AwaitingRetry,
    Cancelling,
    Completed,
    Crashed,
    Paused,
    Pending,
    Running,
    Scheduled,
    Suspended,
)
from prefect.workers.base import BaseWorker
from prefect_fork.settle import OPEN, TAKEN_BY, age, is_open, is_ours, taken_by
from prefect_fork.worker import ForkWorker


def run_in(state: State, retry_type: str | None = None) -> FlowRun:
    policy = FlowRunPolicy.model_validate({"retry_type": retry_type})
    return FlowRun(flow_id=uuid4(), name="a run", state=state, empirical_policy=policy)


@pytest.mark.parametrize(
    ("state", "retry_type", "is_"),
    [
        (Completed(), None, False),
        (Crashed(), None, False),
        (Crashed(), "in_process", False),
        (Running(), None, True),
        (Cancelling(), None, True),
        (Pending(), None, True),
        (Paused(), None, True),
        (Suspended(), None, False),
        (Scheduled(), None, False),
        (AwaitingRetry(), "reschedule", False),
        (AwaitingRetry(), "in_process", True),
    ],
)
def test_which_runs_have_a_process(state: State, retry_type: str | None, is_: bool) -> None:
    assert is_open(run_in(state, retry_type)) is is_


def test_a_run_that_was_taken_again_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    run, again = run_in(Pending()), run_in(Pending())
    assert is_ours(run)  # whoever took it didn't say
    monkeypatch.setenv(TAKEN_BY, taken_by(run))
    assert is_ours(run)
    assert not is_ours(again)


@pytest.mark.parametrize("minutes", [-60, 60])
def test_a_run_waits_for_its_process_by_whatever_clock(minutes: int) -> None:
    """A server's that was an hour ahead when the run was taken has it taken in the future."""
    when = datetime.now(UTC) + timedelta(minutes=minutes)
    assert age(run_in(Pending().model_copy(update={"timestamp": when}))) > 3500
    assert age(run_in(Pending())) < 5


ASKED = httpx.Request("GET", "http://server/api")


@pytest.mark.parametrize(
    ("error", "crashed"),
    [
        (httpx.ConnectError("nobody there"), False),
        (httpx.HTTPStatusError("", request=ASKED, response=httpx.Response(503)), False),
        (httpx.HTTPStatusError("", request=ASKED, response=httpx.Response(404)), True),
        (ValueError("a job variable"), True),
    ],
)
def test_a_run_that_could_not_be_taken_for_want_of_a_server_is_left(
    monkeypatch: pytest.MonkeyPatch, error: Exception, crashed: bool
) -> None:
    prefects = AsyncMock()
    monkeypatch.setattr(BaseWorker, "_propose_crashed_state", prefects)
    worker, run = ForkWorker(work_pool_name="fork-pool"), run_in(Pending())
    worker._client = AsyncMock(**{"read_flow_run.return_value": run})

    async def take() -> None:
        try:
            raise error
        except Exception:
            await worker._propose_crashed_state(run, "It could not be submitted.")

    anyio.run(take)
    assert prefects.await_count == crashed


def test_the_question_for_open_runs_is_an_alternative() -> None:
    assert OPEN.model_dump(mode="json")["operator"] == "or_"
