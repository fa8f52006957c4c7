"""Prefect's Docker worker, which acts on events, and looks after its containers to their end.

The stock worker asks for runs every few seconds: each question costs, and each run waits for the
next one. This one follows the work pool's events as well, so it takes an ad-hoc run when it is
triggered, and cancels one when that is asked for.

With ``auto_remove`` Docker takes the exit code away with the container, so a run that was killed
looks fine; without it, containers pile up. So this worker reads the exit code and then removes the
container; those that a former worker left behind, too. Run as the ``prefect`` command:
``python docker_worker.py worker start --pool docker-pool --type docker``.
"""

import asyncio
import contextlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import docker
import docker.errors
import requests
from prefect.cli import app
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
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration, DockerWorkerResult

WORK_POOL = "docker-pool"
RUN_LABEL = "io.prefect.flow-run-id"
# The signal by which an image's command is told to cancel its run; one without cancels by itself.
CANCEL_LABEL = "prefect-stack.cancel-signal"
# What a cancelled run's container has to end: 30 s for the flow's `finally`, and as many for hooks.
END_SECONDS = 60
# A run of another worker may be between Pending and its container for as long as this.
GRACE_SECONDS = 30
# How long after a lost connection the events are asked for again.
RECONNECT_SECONDS = 5
# How often somebody looks for a cancellation whose event was lost.
CANCELLING_SECONDS = 20

CANCELLING = "prefect.flow-run.Cancelling"
POOL_EVENTS = EventFilter(
    event=EventNameFilter(
        name=[
            "prefect.flow-run.Scheduled",
            "prefect.flow-run.AwaitingRetry",
            "prefect.flow-run.Resuming",
            CANCELLING,
        ]
    ),
    any_resource=EventAnyResourceFilter(
        labels=ResourceSpecification(
            {"prefect.resource.role": "work-pool", "prefect.resource.name": WORK_POOL}
        )
    ),
)

logger = get_logger("docker_worker")


def flow_containers() -> dict[UUID, str]:
    """The ids of this stack's flow containers, ended ones too, by the id of their flow run."""
    client = docker.from_env()
    try:
        filters = {"label": RUN_LABEL, "network": os.environ["FLOWS_NETWORK"]}
        found = client.containers.list(all=True, filters=filters, ignore_removed=True)
        return {UUID(container.labels[RUN_LABEL]): container.id for container in found}
    finally:
        client.close()


def wait_and_remove(container_id: str) -> int | None:
    """Waits for a container's end and removes it.

    Returns:
        Its exit code; None if somebody else removed it before that could be read.
    """
    client = docker.from_env(timeout=None)
    try:
        container = client.containers.get(container_id)
        exit_code = int(container.wait()["StatusCode"])
        container.remove(v=True)
    except docker.errors.NotFound:
        return None
    finally:
        client.close()
    return exit_code


def cancel_container(run_id: UUID) -> bool:
    """Waits for the end of a cancelled run's container, and kills one that takes too long.

    Returns:
        Has the run got a container?
    """
    client = docker.from_env()
    try:
        for container in client.containers.list(filters={"label": f"{RUN_LABEL}={run_id}"}):
            if signal := container.labels.get(CANCEL_LABEL):
                container.kill(signal)
            try:
                container.wait(timeout=END_SECONDS)
            except requests.exceptions.RequestException:
                container.kill()
            return True
    except docker.errors.APIError as error:
        # It ended meanwhile: gone (404), or no longer running (409).
        if error.status_code not in (404, 409):
            raise
        return True
    finally:
        client.close()
    return False


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


async def open_runs(client: PrefectClient, *states: StateType) -> list[FlowRun]:
    """The work pool's runs that are in one of these states."""
    of_type = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states)))
    return await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=of_type),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[WORK_POOL])),
    )


async def adopt(client: PrefectClient, run_id: UUID, container_id: str) -> None:
    """Does for a former worker's container what that worker would have done at its end."""
    try:
        exit_code = await asyncio.to_thread(wait_and_remove, container_id)
        if exit_code != 0:
            await settle(client, run_id, f"Its container ended with exit code {exit_code}.")
    except Exception:
        logger.exception("The container of flow run %s could not be settled", run_id)


async def settle_orphans() -> None:
    """Settles what a former worker left behind: containers, and runs whose container is gone."""
    started = datetime.now(UTC)
    states = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
    async with get_client() as client, asyncio.TaskGroup() as group:
        for run_id, container_id in (await asyncio.to_thread(flow_containers)).items():
            group.create_task(adopt(client, run_id, container_id))
        await asyncio.sleep(GRACE_SECONDS)
        containers = await asyncio.to_thread(flow_containers)
        for run in await open_runs(client, *states):
            if run.id not in containers and run.state and run.state.timestamp < started:
                try:
                    await settle(client, run.id, "Its container is gone.")
                except Exception:
                    logger.exception("Flow run %s could not be settled", run.id)


async def settle_orphans_in_peace() -> None:
    """The same, and whatever goes wrong with it, the worker goes on."""
    try:
        await settle_orphans()
    except Exception:
        logger.exception("What a former worker left behind could not be settled")


with warnings.catch_warnings():
    # It says that the type "docker" is registered anew: that is the purpose.
    warnings.simplefilter("ignore")

    class RemovingDockerWorker(DockerWorker):
        """The worker of type ``docker`` in this stack."""

        async def setup(self) -> None:
            """Prepares the worker and begins to settle what a former one left behind."""
            await super().setup()
            # A thread for each container that is waited for; the default of a few would be used up,
            # and name look-ups wait in the same queue.
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(256))
            self._woken = asyncio.Event()
            self._cancel_asked = asyncio.Event()
            self._cancelling: dict[UUID, asyncio.Task[None]] = {}
            self._background = [
                asyncio.create_task(work)
                for work in (
                    settle_orphans_in_peace(),
                    self._follow_events(),
                    self._take_runs(),
                    self._find_cancelling(),
                )
            ]

        async def teardown(self, *exc_info: Any) -> None:
            """Ends the worker; containers that were adopted are the next one's to adopt."""
            for task in [*self._background, *self._cancelling.values()]:
                task.cancel()
            await super().teardown(*exc_info)

        async def _follow_events(self) -> None:
            """Acts on the work pool's events; without them runs wait for the next poll."""
            while True:
                try:
                    async with get_events_subscriber(filter=POOL_EVENTS) as events:
                        self._woken.set()
                        async for event in events:
                            asked = event.event == CANCELLING
                            (self._cancel_asked if asked else self._woken).set()
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

        async def _find_cancelling(self) -> None:
            """Ends the runs that are to be cancelled; looks by itself, too: events can be lost."""
            while True:
                self._cancel_asked.clear()
                try:
                    async with get_client() as client:
                        for run in await open_runs(client, StateType.CANCELLING):
                            self._cancel(run.id)
                except Exception as error:
                    logger.warning("Runs to be cancelled could not be asked for: %s", error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._cancel_asked.wait(), CANCELLING_SECONDS)

        def _cancel(self, run_id: UUID) -> None:
            """Begins to end a run, once, however often that is asked for."""
            if run_id not in self._cancelling:
                task = asyncio.create_task(self._cancel_container(run_id))
                self._cancelling[run_id] = task
                task.add_done_callback(lambda _: self._cancelling.pop(run_id))

        async def _cancel_container(self, run_id: UUID) -> None:
            """Ends a run that is to be cancelled, wherever it is on its way."""
            try:
                while not await asyncio.to_thread(cancel_container, run_id):
                    if run_id not in self._submitting_flow_run_ids:
                        break
                    await asyncio.sleep(0.2)  # its container is about to be made
                async with get_client() as client:
                    await settle(client, run_id, "Cancelled.")
            except Exception:
                logger.exception("Flow run %s could not be cancelled", run_id)

        async def run(
            self,
            flow_run: FlowRun,
            configuration: DockerWorkerJobConfiguration,
            task_status: Any = None,
        ) -> DockerWorkerResult:
            """Runs the flow in a container of its own and removes that after its end."""
            result = await super().run(flow_run, configuration, task_status)
            container_id = result.identifier.rsplit(":", 1)[1]
            exit_code = await asyncio.to_thread(wait_and_remove, container_id)
            if exit_code is None:
                async with get_client() as client:
                    await settle(client, flow_run.id, "Somebody removed its container.")
            return DockerWorkerResult(status_code=exit_code or 0, identifier=result.identifier)


if __name__ == "__main__":
    app()
