"""Prefect's Docker worker, which acts on events, and looks after its containers to their end.

With ``auto_remove`` Docker takes the exit code away with the container, so a run that was killed
looks fine; without it, containers pile up. So this worker reads the exit code and then removes the
container; those that a former worker left behind, too. Run as the ``prefect`` command:
``python docker_worker.py worker start --pool docker-pool --type docker``.
"""

import asyncio
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
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.logging import get_logger
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration, DockerWorkerResult
from prefect_fork.events import FollowsEvents, open_runs, settle

RUN_LABEL = "io.prefect.flow-run-id"
# The signals by which an image's command is told what becomes of its run; one without these labels
# finds out by itself.
CANCEL_LABEL = "prefect-stack.cancel-signal"
SUSPEND_LABEL = "prefect-stack.suspend-signal"
# What a cancelled run's container has to end: 30 s for the flow's `finally`, and as many for hooks.
END_SECONDS = 60
# A run of another worker may be between Pending and its container for as long as this.
GRACE_SECONDS = 30

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


def suspend_container(container_id: str) -> None:
    """Tells a run that it has been suspended."""
    client = docker.from_env()
    try:
        container = client.containers.get(container_id)
        if signal := container.labels.get(SUSPEND_LABEL):
            container.kill(signal)
    except docker.errors.APIError as error:
        if error.status_code not in (404, 409):  # it has ended
            raise
    finally:
        client.close()


async def adopt(client: PrefectClient, run_id: UUID, container_id: str) -> None:
    """Does for a former worker's container what that worker would have done at its end."""
    try:
        exit_code = await asyncio.to_thread(wait_and_remove, container_id)
        if exit_code != 0:
            await settle(client, run_id, f"Its container ended with exit code {exit_code}.")
    except Exception:
        logger.exception("The container of flow run %s could not be settled", run_id)


async def settle_orphans(work_pool: str) -> None:
    """Settles what a former worker left behind: containers, and runs whose container is gone."""
    started = datetime.now(UTC)
    states = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
    async with get_client() as client, asyncio.TaskGroup() as group:
        for run_id, container_id in (await asyncio.to_thread(flow_containers)).items():
            group.create_task(adopt(client, run_id, container_id))
        await asyncio.sleep(GRACE_SECONDS)
        containers = await asyncio.to_thread(flow_containers)
        for run in await open_runs(client, work_pool, *states):
            if run.id not in containers and run.state and run.state.timestamp < started:
                try:
                    await settle(client, run.id, "Its container is gone.")
                except Exception:
                    logger.exception("Flow run %s could not be settled", run.id)


async def settle_orphans_in_peace(work_pool: str) -> None:
    """The same, and whatever goes wrong with it, the worker goes on."""
    try:
        await settle_orphans(work_pool)
    except Exception:
        logger.exception("What a former worker left behind could not be settled")


with warnings.catch_warnings():
    # It says that the type "docker" is registered anew: that is the purpose.
    warnings.simplefilter("ignore")

    class RemovingDockerWorker(FollowsEvents, DockerWorker):
        """The worker of type ``docker`` in this stack."""

        async def setup(self) -> None:
            """Prepares the worker and begins to settle what a former one left behind."""
            await super().setup()
            # A thread for each container that is waited for; the default of a few would be used up,
            # and name look-ups wait in the same queue.
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(256))
            orphans = settle_orphans_in_peace(self._work_pool_name)
            self._background.append(asyncio.create_task(orphans))

        async def end_cancelled(self, run_id: UUID) -> None:
            """Ends a run that is to be cancelled, wherever it is on its way."""
            while not await asyncio.to_thread(cancel_container, run_id):
                if run_id not in self._submitting_flow_run_ids:
                    break
                await asyncio.sleep(0.2)  # its container is about to be made
            async with get_client() as client:
                await settle(client, run_id, "Cancelled.")

        async def suspend(self, run_ids: list[UUID]) -> None:
            """Tells those of these runs that are still at work that they have been suspended."""
            containers = await asyncio.to_thread(flow_containers)
            for run_id in containers.keys() & set(run_ids):
                await asyncio.to_thread(suspend_container, containers[run_id])

        async def run(
            self,
            flow_run: FlowRun,
            configuration: DockerWorkerJobConfiguration,
            task_status: Any = None,
        ) -> DockerWorkerResult:
            """Runs the flow in a container of its own and removes that after its end."""
            result = await DockerWorker.run(self, flow_run, configuration, task_status)
            container_id = result.identifier.rsplit(":", 1)[1]
            exit_code = await asyncio.to_thread(wait_and_remove, container_id)
            if exit_code is None:
                async with get_client() as client:
                    await settle(client, flow_run.id, "Somebody removed its container.")
            return DockerWorkerResult(status_code=exit_code or 0, identifier=result.identifier)


if __name__ == "__main__":
    app()
