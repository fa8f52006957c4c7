"""Prefect's Docker worker, which also reads each container's exit code, and then removes it.

The stock worker offers two ways, both wrong for us: with ``auto_remove`` Docker takes the exit code
away with the container, so a run that was killed looks fine; without it, containers pile up. Nor
does it look after the containers that a former worker left behind. Run as the ``prefect`` command:
``python docker_worker.py worker start --pool docker-pool --type docker``.
"""

import asyncio
import os
import warnings
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import docker
import docker.errors
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
from prefect.logging import get_logger
from prefect.states import Crashed
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration, DockerWorkerResult

WORK_POOL = "docker-pool"
RUN_LABEL = "io.prefect.flow-run-id"
# A run of another worker may be between Pending and its container for as long as this.
GRACE_SECONDS = 60

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


async def crash(client: PrefectClient, run_id: UUID, why: str) -> None:
    """Sets a run Crashed, unless it has a final state of its own."""
    run = await client.read_flow_run(run_id)
    if run.state is None or not run.state.is_final():
        logger.warning("Flow run %s: %s", run.name, why)
        await client.set_flow_run_state(run_id, Crashed(message=why), force=True)


async def adopt(client: PrefectClient, run_id: UUID, container_id: str) -> None:
    """Does for a former worker's container what that worker would have done at its end."""
    exit_code = await asyncio.to_thread(wait_and_remove, container_id)
    if exit_code != 0:
        await crash(client, run_id, f"Its container ended with exit code {exit_code}.")


async def settle_orphans() -> None:
    """Settles what a former worker left behind: containers, and runs whose container is gone."""
    started = datetime.now(UTC)
    states = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    open_runs = FlowRunFilterState(type=FlowRunFilterStateType(any_=states))
    async with get_client() as client, asyncio.TaskGroup() as group:
        for run_id, container_id in (await asyncio.to_thread(flow_containers)).items():
            group.create_task(adopt(client, run_id, container_id))
        await asyncio.sleep(GRACE_SECONDS)
        containers = await asyncio.to_thread(flow_containers)
        for run in await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=open_runs),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[WORK_POOL])),
        ):
            if run.id not in containers and run.state and run.state.timestamp < started:
                await crash(client, run.id, "Its container is gone.")


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
            self._orphans = asyncio.create_task(settle_orphans_in_peace())

        async def teardown(self, *exc_info: Any) -> None:
            """Ends the worker; containers that were adopted are the next one's to adopt."""
            self._orphans.cancel()
            await super().teardown(*exc_info)

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
                    await crash(client, flow_run.id, "Somebody removed its container.")
            return DockerWorkerResult(status_code=exit_code or 0, identifier=result.identifier)


if __name__ == "__main__":
    app()
