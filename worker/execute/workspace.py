"""Where the flow's code is: the deployment's pull steps, as the stock command runs them."""

import asyncio
import os
import sys
import tempfile
from uuid import UUID

from prefect.runner._workspace_resolver import prepare_workspace_for_flow_run
from prefect.runner._workspace_starter import workspace_environment


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
