"""A worker that acts on its work pool's events, and looks after the pool's runs to their end.

The stock worker asks for runs every few seconds: each question costs, and each run waits for the
next one. With this, a worker takes an ad-hoc run when it is triggered, and ends one when that is
asked for. It also settles the runs that lost their process, other workers' too.
"""

import asyncio
import contextlib
import math
import sys
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

import anyio
import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import Abort
from prefect.logging import get_logger
from prefect.states import Late, Pending
from prefect.utilities.engine import propose_state
from prefect.workers.base import BaseWorker

from .settle import (
    LOST_SECONDS,
    age,
    is_late,
    is_open,
    open_runs,
    retry_crashed,
    settle,
    taken_by,
)

# How long after a lost connection the events are asked for again.
RECONNECT_SECONDS = 5
# How often a worker looks for what no event tells, or one that was lost.
LOOK_SECONDS = 20
# A worker that has taken a run may need so long to make its process.
START_SECONDS = 45
# The server itself may have been away, and nobody's heartbeat heard.
CONTACT_SECONDS = 60
GOODBYE_SECONDS = 5

TO_BE_ENDED = ["prefect.flow-run.Cancelling", "prefect.flow-run.Suspended"]
TO_BE_TAKEN = [
    "prefect.flow-run.Scheduled",
    "prefect.flow-run.AwaitingRetry",
    "prefect.flow-run.Resuming",
]

CRASHED = "prefect.flow-run.Crashed"

logger = get_logger("prefect_fork")


def pool_events(work_pool: str) -> EventFilter:
    """The events that concern a worker of this work pool."""
    return EventFilter(
        event=EventNameFilter(name=[*TO_BE_TAKEN, *TO_BE_ENDED, CRASHED]),
        any_resource=EventAnyResourceFilter(
            labels=ResourceSpecification(
                {"prefect.resource.role": "work-pool", "prefect.resource.name": work_pool}
            )
        ),
    )


if TYPE_CHECKING:
    Worker = BaseWorker[Any, Any, Any]
else:
    Worker = object  # every subclass of Prefect's is a type of worker; this isn't one


class FollowsEvents(Worker):
    """What a worker class inherits, before Prefect's, to act on events and to settle runs."""

    async def setup(self) -> None:
        """Prepares the worker and begins to follow the events."""
        await super().setup()
        self._woken = asyncio.Event()
        self._look_asked = asyncio.Event()
        self._cancelling: dict[UUID, asyncio.Task[None]] = {}
        self._lost: dict[UUID, float] = {}
        self._in_contact = math.inf
        self._background = [
            asyncio.create_task(work)
            for work in (self._follow_events(), self._take_runs(), self._look_after_runs())
        ]

    async def teardown(self, *exc_info: Any) -> None:
        """Ends the worker."""
        for task in [*self._background, *self._cancelling.values()]:
            task.cancel()
        # What it leaves behind is at once for others to settle.
        mine = {"work_pool_name": self._work_pool_name, "name": self.name}
        with anyio.move_on_after(GOODBYE_SECONDS), contextlib.suppress(Exception):
            async with get_client() as client:
                await client.request(
                    "DELETE", "/work_pools/{work_pool_name}/workers/{name}", path_params=mine
                )
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

    async def _propose_pending_state(self, flow_run: FlowRun) -> bool:
        """Takes a run, if nobody else has; its state then says for whom its process is made."""
        due = flow_run.next_scheduled_start_time
        try:
            if flow_run.state and flow_run.state.name == "Scheduled" and is_late(due):
                late: State[object] = Late(scheduled_time=due)
                await propose_state(self.client, late, flow_run_id=flow_run.id)
            flow_run.state = await propose_state(self.client, Pending(), flow_run_id=flow_run.id)
        except Abort as error:
            logger.info("Flow run %s was not taken: %s", flow_run.name, error)
            return False
        return flow_run.state.is_pending()

    async def _propose_crashed_state(
        self, flow_run: FlowRun, message: str, client: PrefectClient | None = None
    ) -> None:
        """Sets a run Crashed that ended badly, but not one that is settled: it may begin anew.

        What can't be told now is found later, and so is a run that couldn't be taken because server
        or database was away: nothing of it has begun. An error here would end the worker and all
        its runs.
        """
        error = sys.exception()  # by which it couldn't be taken, if so
        if isinstance(error, httpx.TransportError) or (
            isinstance(error, httpx.HTTPStatusError) and error.response.is_server_error
        ):
            logger.warning("Flow run %s is left to the next look: %s", flow_run.name, error)
            return
        try:
            found = await self.client.read_flow_run(flow_run.id)
            is_anothers = taken_by(found) != taken_by(flow_run)
            if not is_open(found) or (found.state_type == StateType.PENDING and is_anothers):
                return
        except Exception as error:
            logger.warning("Flow run %s could not be settled: %s", flow_run.name, error)
            return
        await super()._propose_crashed_state(flow_run, message, client)

    async def _propose_submitting_state(self, flow_run: FlowRun) -> None:
        """Skips a state between Pending and Running that tells nobody anything."""

    async def end_cancelled(self, run_id: UUID) -> None:
        """Ends a run that is to be cancelled, wherever it is on its way, and settles it."""
        raise NotImplementedError

    async def suspend(self, run_ids: list[UUID]) -> None:
        """Tells those of these runs that are still at work that they have been suspended."""
        raise NotImplementedError

    async def lost(self, client: PrefectClient, runs: list[FlowRun]) -> set[UUID]:
        """Those of the pool's open runs that have no process, as far as this worker can tell."""
        raise NotImplementedError

    async def workers_at_work(self, client: PrefectClient) -> set[str]:
        """The names of the pool's workers that are there, as far as this worker can tell."""
        known = await client.read_workers_for_work_pool(self._work_pool_name)
        everybody = time.monotonic() - self._in_contact < CONTACT_SECONDS
        return {worker.name for worker in known if everybody or worker.status == "ONLINE"}

    async def _follow_events(self) -> None:
        """Acts on the work pool's events; without them runs wait for the next poll."""
        while True:
            try:
                async with get_events_subscriber(filter=pool_events(self._work_pool_name)) as found:
                    self._woken.set()
                    await self._retry_crashed()
                    async for event in found:
                        if event.event == CRASHED:
                            await self._retry_crashed()
                        elif event.event in TO_BE_ENDED:
                            self._look_asked.set()
                        else:
                            self._woken.set()
            except Exception as error:
                logger.warning("No events from the server, asking again: %s", error)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _retry_crashed(self) -> None:
        await retry_crashed(self.client, self._work_pool_name)

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

    async def _look_after_runs(self) -> None:
        """Looks for runs to be ended or settled, every so often and when that is asked for."""
        while True:
            self._look_asked.clear()
            try:
                await self._look(self.client)
                self._in_contact = min(self._in_contact, time.monotonic())
            except Exception as error:
                self._in_contact = math.inf
                logger.warning("The pool's runs could not be looked after: %s", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look_asked.wait(), LOOK_SECONDS)

    async def _look(self, client: PrefectClient) -> None:
        """Ends runs that somebody cancels or suspends, and settles those without a process."""
        found = [run for run in await open_runs(client, self._work_pool_name) if run.state]
        for run in found:
            if run.state_type == StateType.CANCELLING:
                self._cancel(run.id)
        if suspended := [run.id for run in found if run.state_name == "Suspended"]:
            await self.suspend(suspended)
        now = time.monotonic()
        lost = await self.lost(client, [run for run in found if is_open(run)])
        self._lost = {run_id: self._lost.get(run_id, now) for run_id in lost}
        for run in found:
            if now - self._lost.get(run.id, now) >= LOST_SECONDS and age(run) >= START_SECONDS:
                await settle(client, run.id, "Its process is gone.")

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
