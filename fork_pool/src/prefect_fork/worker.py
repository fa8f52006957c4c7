"""The worker of type ``fork``: each flow run a fresh process, forked off one that is loaded.

``prefect worker start --pool fork-pool --type fork``, wherever this package is installed. What
is to be loaded, PREFECT_FORK_PRELOAD says: modules, and folders of flows whose imports are meant (a
name with a slash in it), separated by commas; a module after a - isn't.
"""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import anyio
from prefect._internal.infrastructure_exit_codes import get_infrastructure_exit_info
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.exceptions import InfrastructureNotAvailable, InfrastructureNotFound
from prefect.workers.base import (
    BaseJobConfiguration,
    BaseWorker,
    BaseWorkerResult,
)
from pydantic import Field

from .child import Job
from .events import GOODBYE_SECONDS, FollowsEvents
from .forkserver import Child, ForkServers, PreloadError
from .settle import TAKEN_BY, hand_back, settle, taken_by

MIB = 1 << 20
# What a cancelled run has to end: 30 s for the flow's `finally`, and as many for hooks.
END_SECONDS = 60
# What the runs have to end when the worker is stopped, and then, told to, to say so. With what
# the worker itself may say, it is within the service's stop_grace_period.
GRACE_SECONDS, LAST_SECONDS = 30, 10


class ForkJobConfiguration(BaseJobConfiguration):
    """What a flow run's process is made from; the job variables are the same."""

    working_dir: Path | None = Field(
        default=None,
        title="Working Directory",
        description="The folder that the flow run's process starts in; if left out, a temporary "
        "one of its own.",
    )
    memory_limit: int | None = Field(
        default=None,
        gt=0,
        title="Memory Limit",
        description="MiB that a process of the flow run may allocate beyond what it was forked "
        "with; more is a MemoryError in the flow.",
    )
    time_limit: float | None = Field(
        default=None,
        gt=0,
        title="Time Limit",
        description="Seconds that the flow run may take, from its scheduled time on; then it is "
        "killed and reported as Crashed. A flow's own timeout_seconds lets it clean up.",
    )
    stream_output: bool = Field(
        default=True,
        title="Stream Output",
        description="If set, what the flow run prints goes where the worker's own output goes.",
    )


class ForkWorkerResult(BaseWorkerResult):
    """How a flow run's process ended."""


class ForkWorker(FollowsEvents, BaseWorker[ForkJobConfiguration, Any, ForkWorkerResult]):
    """Runs each flow run in a process of its own, forked off one that has loaded Prefect."""

    type = "fork"
    job_configuration = ForkJobConfiguration
    _display_name = "Fork"
    _description = (
        "Execute flow runs as processes forked off a loaded one. For small flows that run often: "
        "a fraction of what a container costs, and of its isolation."
    )

    @classmethod
    def get_default_base_job_template(cls) -> dict[str, Any]:
        """The job variables, without those that mean nothing to a process that is forked."""
        template = super().get_default_base_job_template()
        for name in ("command", "labels", "name"):
            del template["job_configuration"][name]
            del template["variables"]["properties"][name]
        return template

    async def setup(self) -> None:
        """Loads what is to be preloaded, then begins to take runs."""
        self._children: dict[UUID, tuple[Child, float]] = {}
        self._left = False
        self._stopping = False
        preload = os.environ.get("PREFECT_FORK_PRELOAD", "")
        self._forkservers = ForkServers(preload, self.job_configuration._base_environment())
        try:
            await asyncio.to_thread(self._forkservers.start)
        except PreloadError as error:
            sys.exit(f"The worker can't start.\n{error}")
        await super().setup()

    async def teardown(self, *exc_info: Any) -> None:
        """Hands back what hasn't begun, gives the rest time to end, and ends the worker."""
        self._stopping = True
        await self._let_end()
        await super().teardown(*exc_info)
        self._forkservers.close()

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ForkJobConfiguration,
        task_status: Any = None,
    ) -> ForkWorkerResult:
        """Forks a process for a flow run and waits for its end."""
        task_status = task_status or anyio.TASK_STATUS_IGNORED
        identifier = f"{self.name}:{flow_run.id}"
        if self._stopping:
            task_status.started(identifier)
            async with get_client() as client:
                await hand_back(client, flow_run)
            return ForkWorkerResult(identifier=identifier, status_code=0)
        if configuration.working_dir and not configuration.working_dir.is_dir():
            raise NotADirectoryError(
                f"expected a folder as working_dir, found none at {configuration.working_dir}"
            )
        configuration.env[TAKEN_BY] = taken_by(flow_run)
        due = due_time(flow_run)
        with tempfile.TemporaryDirectory(prefix="prefect-fork-", ignore_cleanup_errors=True) as own:
            job = Job(
                environment=os.environ | cast("dict[str, str]", configuration.env),
                folder=str(configuration.working_dir or own),
                temporary=own,
                output=configuration.stream_output,
                memory=configuration.memory_limit and configuration.memory_limit * MIB,
                seconds=configuration.time_limit and configuration.time_limit + seconds_until(due),
            )
            child = await asyncio.to_thread(self._forkservers.fork, job)
            self._children[flow_run.id] = (child, due)
            task_status.started(f"{identifier}:{child.pid}")
            try:
                code = await child.wait()
            finally:
                end_group(child.pid, signal.SIGKILL)
                del self._children[flow_run.id]
                if self._left:  # as soon as this has returned, its slot is free
                    asyncio.get_running_loop().call_soon(self._woken.set)
        # What becomes of a cancelled run, whoever cancelled it says.
        code = 0 if flow_run.id in self._cancelling else code
        if code != 0:
            async with get_client() as client:
                why = f"Its process ended with exit code {code}. "
                why += get_infrastructure_exit_info(code).explanation
                await settle(client, flow_run.id, why)
        return ForkWorkerResult(identifier=identifier, status_code=code)

    async def end_cancelled(self, run_id: UUID) -> None:
        """Ends a run of this worker's that is to be cancelled; those of others are theirs."""
        while run_id not in self._children:
            if run_id not in self._submitting_flow_run_ids:
                return
            await asyncio.sleep(0.1)  # its process is about to be forked
        child, _ = self._children[run_id]
        self._tell([run_id], signal.SIGUSR1)
        await self._gone([run_id], END_SECONDS)
        if run_id in self._children:
            end_group(child.pid, signal.SIGKILL)
            await self._gone([run_id], LAST_SECONDS)
        async with get_client() as client:
            await settle(client, run_id, "Cancelled.")

    async def suspend(self, run_ids: list[UUID]) -> None:
        """Tells those of these runs that are still at work that they have been suspended."""
        self._tell([run for run in run_ids if run in self._children], signal.SIGUSR2)

    async def lost(self, client: PrefectClient, runs: list[FlowRun]) -> set[UUID]:
        """Those that were this worker's, or another's that is gone."""
        if not runs:
            return set()
        others = await self.workers_at_work(client) - {self.name}

        def is_lost(run: FlowRun) -> bool:
            name = (run.infrastructure_pid or "").rsplit(":", 2)[0]
            of_somebody = not name and run.state_type != StateType.PENDING
            return name not in others and not (of_somebody and others)

        mine = self._children.keys() | self._submitting_flow_run_ids
        return {run.id for run in runs if run.id not in mine and is_lost(run)}

    async def kill_infrastructure(
        self,
        infrastructure_pid: str,
        configuration: ForkJobConfiguration,
        grace_seconds: int = 30,
    ) -> None:
        """Ends the processes of a flow run.

        Raises:
            InfrastructureNotAvailable: They are another worker's.
            InfrastructureNotFound: They have ended.
        """
        name, _, rest = infrastructure_pid.rpartition(":")
        name, _, run = name.rpartition(":")
        if name != self.name:
            raise InfrastructureNotAvailable(
                f"expected a process of worker {self.name!r}, found {infrastructure_pid!r}"
            )
        if not run or UUID(run) not in self._children:
            raise InfrastructureNotFound(f"process {rest} of flow run {run} has ended")
        end_group(int(rest), signal.SIGTERM)
        await self._gone([UUID(run)], grace_seconds)
        end_group(int(rest), signal.SIGKILL)

    async def _let_end(self) -> None:
        """Ends all runs: at once those that wait for their time, after a while the others."""
        with anyio.move_on_after(GOODBYE_SECONDS):  # the server may be away
            while self._submitting_flow_run_ids:
                await asyncio.sleep(0.1)
        now = datetime.now(UTC).timestamp()
        waiting = [run for run, (_, due) in self._children.items() if due > now]
        self._tell(waiting, signal.SIGTERM)
        await self._gone(list(self._children), GRACE_SECONDS)
        self._tell(list(self._children), signal.SIGTERM)
        await self._gone(list(self._children), LAST_SECONDS)
        killed = dict(self._children)
        for child, _ in killed.values():
            end_group(child.pid, signal.SIGKILL)
        with anyio.move_on_after(GOODBYE_SECONDS):
            async with get_client() as client:
                for run in killed:
                    await settle(client, run, "Its worker was stopped, and it didn't end.")

    def _tell(self, runs: list[UUID], number: int) -> None:
        """Sends a signal to the processes that watch over these runs."""
        for run in runs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._children[run][0].pid, number)

    async def _gone(self, runs: list[UUID], seconds: float) -> None:
        """Waits until the processes of these runs are gone, or so many seconds are over."""
        with anyio.move_on_after(seconds):
            while any(run in self._children for run in runs):
                await asyncio.sleep(0.1)

    async def _submit_scheduled_flow_runs(
        self, flow_run_response: list[WorkerFlowRunResponse]
    ) -> list[FlowRun]:
        """Takes as many of these runs as it may, and remembers whether it left some."""
        if self._stopping:
            return []
        taken = await super()._submit_scheduled_flow_runs(flow_run_response)
        self._left = len(taken) < len(flow_run_response)
        return taken


def due_time(flow_run: FlowRun) -> float:
    """When a flow run is to begin, in seconds since the epoch."""
    when = flow_run.next_scheduled_start_time or flow_run.expected_start_time
    return when.timestamp() if when else 0.0


def seconds_until(when: float) -> float:
    """How long it is until then, none if it has passed."""
    return max(0.0, when - datetime.now(UTC).timestamp())


def end_group(pid: int, number: int) -> None:
    """Sends a signal to a process and all of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
