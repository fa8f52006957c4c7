"""Prefect's Docker worker, which acts on events, and looks after its containers to their end.

With ``auto_remove`` Docker takes the exit code away with the container, so a run that was killed
looks fine; without it, containers pile up. So this worker reads the exit code and then removes the
container; those that a former worker left behind, too. Run as the ``prefect`` command:
``python docker_worker.py worker start --pool docker-pool --type docker``.
"""

import asyncio
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import docker
import docker.errors
import requests
import urllib3
from prefect._internal.infrastructure_exit_codes import get_infrastructure_exit_info
from prefect.cli import app
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.logging import get_logger
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration, DockerWorkerResult
from prefect_fork.events import FollowsEvents
from prefect_fork.settle import TAKEN_BY, settle, taken_by

RUN_LABEL = "io.prefect.flow-run-id"
WORKER_LABEL = "io.prefect.worker-name"
# The signals by which an image's command is told what becomes of its run; one without these labels
# finds out by itself.
CANCEL_LABEL = "prefect-stack.cancel-signal"
SUSPEND_LABEL = "prefect-stack.suspend-signal"
# What a cancelled run's container has to end: 30 s for the flow's `finally`, and as many for hooks.
END_SECONDS = 60
NO_ANSWER = (requests.RequestException, urllib3.exceptions.HTTPError)

# What a flow run gets of the worker's own settings: whom to ask, and by which login. Prefect would
# hand on all of them; what a flow needs beside is in the base job template.
HANDED_ON = {
    "PREFECT_API_URL",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_UI_URL",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED",
}

logger = get_logger("docker_worker")


@dataclass(frozen=True)
class FlowContainer:
    """A flow run's container, perhaps an ended one."""

    id: str
    run_id: UUID
    worker: str
    started: bool


def flow_containers() -> list[FlowContainer]:
    """This stack's flow containers: the gate shows no others."""
    client = docker.from_env()
    try:
        filters = {"label": RUN_LABEL}
        return [
            FlowContainer(
                container.id,
                UUID(container.labels[RUN_LABEL]),
                container.labels.get(WORKER_LABEL, ""),
                container.status != "created",
            )
            for container in client.containers.list(all=True, filters=filters, ignore_removed=True)
        ]
    finally:
        client.close()


class NotAllowed(Exception):
    """The gate refused a container: its reason, as the flow run's log and state show it."""


def is_away(error: BaseException | None) -> bool:
    """Was there nobody to ask: the gate, or the engine behind it?"""
    if isinstance(error, docker.errors.APIError):
        return bool(error.status_code == 502)
    if isinstance(error, (*NO_ANSWER, ConnectionError)):
        return True
    return error is not None and is_away(error.__cause__ or error.__context__)


def wait_and_remove(container_id: str, started: bool = True) -> int | None:
    """Waits for a container's end, if it was ever started, and removes it.

    Returns:
        Its exit code; None if somebody else removed it before that could be read.
    """
    client = docker.from_env(timeout=None)
    try:
        container = client.containers.get(container_id)
        exit_code = int(container.wait()["StatusCode"]) if started else None
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


class FlowContainerConfiguration(DockerWorkerJobConfiguration):
    """What a flow run's container is made from."""

    def _base_environment(self) -> dict[str, str]:
        """The settings that every flow run is given."""
        handed: dict[str, str] = super()._base_environment()
        return {key: value for key, value in handed.items() if key in HANDED_ON}


with warnings.catch_warnings():
    # It says that the type "docker" is registered anew: that is the purpose.
    warnings.simplefilter("ignore")

    class RemovingDockerWorker(FollowsEvents, DockerWorker):
        """The worker of type ``docker`` in this stack."""

        job_configuration = FlowContainerConfiguration

        async def setup(self) -> None:
            """Prepares the worker."""
            self._watched: set[UUID] = set()
            await super().setup()
            # A thread for each container that is waited for; the default of a few would be used up,
            # and name look-ups wait in the same queue.
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(256))

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
            for container in await asyncio.to_thread(flow_containers):
                if container.run_id in run_ids:
                    await asyncio.to_thread(suspend_container, container.id)

        async def lost(self, client: PrefectClient, runs: list[FlowRun]) -> set[UUID]:
            """Those that have no container; takes over the containers of workers that are gone."""
            containers = await asyncio.to_thread(flow_containers)
            if left := [one for one in containers if one.run_id not in self._watched]:
                others = await self.workers_at_work(client) - {self.name}
                for container in left:
                    if container.worker not in others:
                        self._watched.add(container.run_id)
                        self._background.append(asyncio.create_task(self._adopt(container)))
            on_their_way = {one.run_id for one in containers} | self._submitting_flow_run_ids
            return {run.id for run in runs} - on_their_way

        async def _adopt(self, container: FlowContainer) -> None:
            """Does for a container of a worker's that is gone what that one would have done."""
            try:
                exit_code = await asyncio.to_thread(
                    wait_and_remove, container.id, container.started
                )
                if exit_code != 0:
                    await self._settle_ended(container.run_id, exit_code)
            except Exception:
                logger.exception("The container of run %s could not be settled", container.run_id)
            finally:
                self._watched.discard(container.run_id)

        async def _settle_ended(self, run_id: UUID, exit_code: int | None) -> None:
            """Settles a run whose container has ended, unless it has another one by now."""
            containers = await asyncio.to_thread(flow_containers)
            if run_id not in {container.run_id for container in containers}:
                why = "Its container is gone."
                if exit_code is not None:
                    why = f"Its container ended with exit code {exit_code}. "
                    why += get_infrastructure_exit_info(exit_code).explanation
                async with get_client() as client:
                    await settle(client, run_id, why)

        async def run(
            self,
            flow_run: FlowRun,
            configuration: DockerWorkerJobConfiguration,
            task_status: Any = None,
        ) -> DockerWorkerResult:
            """Runs the flow in a container of its own and removes that after its end.

            Raises:
                NotAllowed: The gate refused the container.
            """
            configuration.env[TAKEN_BY] = taken_by(flow_run)
            # By these it is found, cancelled and settled: not for a job variable to say.
            configuration.labels[RUN_LABEL] = str(flow_run.id)
            configuration.labels[WORKER_LABEL] = self.name
            self._watched.add(flow_run.id)
            try:
                result = await DockerWorker.run(self, flow_run, configuration, task_status)
                container_id = result.identifier.rsplit(":", 1)[1]
                exit_code = await asyncio.to_thread(wait_and_remove, container_id)
            except Exception as error:
                if isinstance(error, docker.errors.APIError) and error.status_code == 403:
                    raise NotAllowed(error.explanation) from None
                if not is_away(error):
                    raise
                # What has begun goes on, what hasn't begins again: the next looks settle it.
                logger.warning("Flow run %s is out of sight: %s", flow_run.name, error)
                if task_status and not task_status._future.done():
                    task_status.started(error)
                return DockerWorkerResult(status_code=0, identifier="")
            finally:
                self._watched.discard(flow_run.id)
            if exit_code != 0:
                await self._settle_ended(flow_run.id, exit_code)
            return DockerWorkerResult(status_code=exit_code or 0, identifier=result.identifier)


if __name__ == "__main__":
    app()
