"""Where the flow's code is: the deployment's pull steps, as the stock command runs them."""

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from uuid import UUID

from prefect.deployments.steps import core as steps
from prefect.events import Event
from prefect.events.worker import EventsWorker
from prefect.runner._workspace_resolver import prepare_workspace_for_flow_run
from prefect.runner._workspace_starter import workspace_environment


class RunsOwnEvents:
    """An events client for pull steps, which would make a connection for each, and wait for it.

    The run has one for its own events, which are sent while it goes on.
    """

    async def emit(self, event: Event) -> None:
        """Hands an event over."""
        EventsWorker.instance().send(event)


@contextlib.asynccontextmanager
async def runs_own_events(**_: object) -> AsyncIterator[RunsOwnEvents]:
    """In the place of Prefect's function that connects."""
    yield RunsOwnEvents()


steps.get_events_client = runs_own_events  # type: ignore


def flow_run_id() -> UUID:
    """The flow run that this container is for; the worker sets it."""
    return UUID(os.environ["PREFECT__FLOW_RUN_ID"])


def prepare() -> str:
    """Runs the pull steps in a folder of their own and goes where they lead.

    Returns:
        The flow's entrypoint, as seen from there.
    """
    start = os.getcwd()
    folder = tempfile.mkdtemp(prefix="prefect-flow-run-")
    workspace = asyncio.run(prepare_workspace_for_flow_run(flow_run_id(), folder))
    # As in a Python that is started there: that folder is first on its path, the first one isn't.
    sys.path[:] = [
        str(workspace.working_directory),
        *(entry for entry in sys.path if entry != start),
    ]
    os.environ["PYTHONPATH"] = workspace_environment(workspace)["PYTHONPATH"]
    return workspace.runtime_entrypoint
