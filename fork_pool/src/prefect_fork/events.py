"""A worker that acts on its work pool's events.

The stock worker asks for runs every few seconds: each question costs, and each run waits for the
next one. With this, a worker takes an ad-hoc run when it is triggered, and ends one when that is
asked for.
"""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter
from prefect.events.schemas.events import ResourceSpecification
from prefect.logging import get_logger
from prefect.states import Cancelled, Crashed
from prefect.workers.base import BaseWorker

# How long after a lost connection the events are asked for again.
RECONNECT_SECONDS = 5
# How often somebody looks for what an event that was lost asked for.
LOOK_SECONDS = 20

TO_BE_ENDED = ["prefect.flow-run.Cancelling", "prefect.flow-run.Suspended"]
TO_BE_TAKEN = [
    "prefect.flow-run.Scheduled",
    "prefect.flow-run.AwaitingRetry",
    "prefect.flow-run.Resuming",
]

logger = get_logger("prefect_fork")


def pool_events(work_pool: str) -> EventFilter:
    """The events that concern a worker of this work pool."""
    return EventFilter(
        event=EventNameFilter(name=[*TO_BE_TAKEN, *TO_BE_ENDED]),
        any_resource=EventAnyResourceFilter(
            labels=ResourceSpecification(
                {"prefect.resource.role": "work-pool", "prefect.resource.name": work_pool}
            )
        ),
    )


async def open_runs(client: PrefectClient, work_pool: str, *states: StateType) -> list[FlowRun]:
    """The work pool's runs that are in one of these states."""
    of_type = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states)))
    return await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=of_type),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[work_pool])),
    )


async def settle(client: PrefectClient, run_id: UUID, why: str) -> None:
    """Sets a run Crashed, or Cancelled if that was asked for; a final state of its own stays."""
    run = await client.read_flow_run(run_id)
    if run.state is not None and run.state.is_final():
        return
    if run.state is not None and run.state.is_cancelling():
        await client.set_flow_run_state(run_id, Cancelled(message="Cancelled."), force=True)
        return
    logger.warning("Flow run %s: %s", run.name, why)
    await client.set_flow_run_state(run_id, Crashed(message=why), force=True)


if TYPE_CHECKING:
    Worker = BaseWorker[Any, Any, Any]
else:
    Worker = object  # every subclass of Prefect's is a type of worker; this isn't one


class FollowsEvents(Worker):
    """What a worker class inherits, before Prefect's, to act on events."""

    async def setup(self) -> None:
        """Prepares the worker and begins to follow the events."""
        await super().setup()
        self._woken = asyncio.Event()
        self._end_asked = asyncio.Event()
        self._cancelling: dict[UUID, asyncio.Task[None]] = {}
        self._background = [
            asyncio.create_task(work)
            for work in (self._follow_events(), self._take_runs(), self._find_to_be_ended())
        ]

    async def teardown(self, *exc_info: Any) -> None:
        """Ends the worker."""
        for task in [*self._background, *self._cancelling.values()]:
            task.cancel()
        await super().teardown(*exc_info)

    async def _submit_run(self, flow_run: FlowRun) -> None:
        """Takes a run; one that can't be taken now is left to a later poll.

        Prefect lets an error of the server's (its database away) end the worker with all its runs.
        """
        try:
            await super()._submit_run(flow_run)
        except Exception as error:
            logger.warning("Flow run %s could not be taken: %s", flow_run.name, error)
            self._submitting_flow_run_ids.discard(flow_run.id)
            self._release_limit_slot(flow_run.id)

    async def _propose_submitting_state(self, flow_run: FlowRun) -> None:
        """Skips a state between Pending and Running that tells nobody anything."""

    async def end_cancelled(self, run_id: UUID) -> None:
        """Ends a run that is to be cancelled, wherever it is on its way, and settles it."""
        raise NotImplementedError

    async def suspend(self, run_ids: list[UUID]) -> None:
        """Tells those of these runs that are still at work that they have been suspended."""
        raise NotImplementedError

    async def _follow_events(self) -> None:
        """Acts on the work pool's events; without them runs wait for the next poll."""
        while True:
            try:
                async with get_events_subscriber(filter=pool_events(self._work_pool_name)) as found:
                    self._woken.set()
                    async for event in found:
                        (self._end_asked if event.event in TO_BE_ENDED else self._woken).set()
            except Exception as error:
                logger.warning("No events from the server, asking again: %s", error)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _take_runs(self) -> None:
        """Takes the runs that are due now, or will be within the prefetch, when woken."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while not self._has_successfully_synced:
                await asyncio.sleep(0.1)
            try:
                await self.get_and_submit_flow_runs()
            except Exception as error:
                logger.warning("Runs could not be taken, the next poll will: %s", error)

    async def _find_to_be_ended(self) -> None:
        """Ends runs that somebody cancels or suspends; looks by itself, too: events can be lost."""
        states = (StateType.CANCELLING, StateType.PAUSED)
        while True:
            self._end_asked.clear()
            try:
                async with get_client() as client:
                    found = await open_runs(client, self._work_pool_name, *states)
                for run in found:
                    if run.state_type == StateType.CANCELLING:
                        self._cancel(run.id)
                if suspended := [run.id for run in found if run.state_name == "Suspended"]:
                    await self.suspend(suspended)
            except Exception as error:
                logger.warning("Runs to be cancelled or suspended were not found: %s", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._end_asked.wait(), LOOK_SECONDS)

    def _cancel(self, run_id: UUID) -> None:
        """Begins to end a run, once, however often that is asked for."""
        if run_id not in self._cancelling:
            task = asyncio.create_task(self._end_cancelled_in_peace(run_id))
            self._cancelling[run_id] = task
            task.add_done_callback(lambda _: self._cancelling.pop(run_id))

    async def _end_cancelled_in_peace(self, run_id: UUID) -> None:
        """The same, and whatever goes wrong with it, the worker goes on."""
        try:
            await self.end_cancelled(run_id)
        except Exception:
            logger.exception("Flow run %s could not be cancelled", run_id)
