"""Prefect's Docker worker, which also reads each container's exit code and then removes it.

The stock worker offers two ways, both wrong for us: with ``auto_remove`` Docker takes the exit code
away with the container, so a run that was killed looks fine; without it, containers pile up. Run as
the ``prefect`` command: ``python docker_worker.py worker start --pool docker-pool --type docker``.
"""

import warnings
from typing import Any

import docker
import docker.errors
from prefect.cli import app
from prefect.client.schemas.objects import FlowRun
from prefect.utilities.asyncutils import run_sync_in_worker_thread
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration, DockerWorkerResult


def remove_ended_container(identifier: str, exit_code: int) -> int:
    """Removes the container of an ended flow run.

    Args:
        identifier: ``<docker host>:<container id>``, as the worker reports it.
        exit_code: What the worker read; kept where somebody else removed the container already.

    Returns:
        The container's final exit code. The stock worker's own reading may be from a moment
        before the end, when Docker still says 0.
    """
    client = docker.from_env()
    try:
        container = client.containers.get(identifier.rsplit(":", 1)[1])
        exit_code = int(container.attrs["State"]["ExitCode"])
        container.remove(v=True)
    except docker.errors.NotFound:
        pass
    finally:
        client.close()
    return exit_code


with warnings.catch_warnings():
    # It says that the type "docker" is registered anew: that is the purpose.
    warnings.simplefilter("ignore")

    class RemovingDockerWorker(DockerWorker):
        """The worker of type ``docker`` in this stack."""

        async def run(
            self,
            flow_run: FlowRun,
            configuration: DockerWorkerJobConfiguration,
            task_status: Any = None,
        ) -> DockerWorkerResult:
            """Runs the flow in a container of its own and removes that after its end."""
            result = await super().run(flow_run, configuration, task_status)
            exit_code = await run_sync_in_worker_thread(
                remove_ended_container, result.identifier, result.status_code
            )
            return DockerWorkerResult(status_code=exit_code, identifier=result.identifier)


if __name__ == "__main__":
    app()
