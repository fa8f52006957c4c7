"""Says how a flow run ended whose process died, and runs the hooks that it could not run itself."""

import asyncio
import signal
from datetime import UTC, datetime
from typing import Any

from prefect._internal.infrastructure_exit_codes import get_infrastructure_exit_info
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.runner._hook_runner import HookRunner
from prefect.runner._state_proposer import StateProposer
from prefect.states import Scheduled
from prefect.utilities.engine import propose_state

from .workspace import flow_run_id, prepare

STOPPED = (-signal.SIGTERM, 128 + signal.SIGTERM)


def report(code: int, why: str = "") -> bool:
    """Reports a flow run as Crashed, or as Cancelled where that was asked for.

    Args:
        code: The exit code of its process, -N for signal N.
        why: What is known of the reason.

    Returns:
        Has the run a final state now, or will another container take it?

    Raises:
        Exception: The server doesn't answer.
    """
    return asyncio.run(_report(code, why))


async def _report(code: int, why: str) -> bool:
    async with get_client() as client:
        flow_run = await client.read_flow_run(flow_run_id())
        if flow_run.state is None or is_settled(flow_run, flow_run.state):
            return True
        if code in STOPPED and (due := waits_for(flow_run.state)):
            await propose_state(client, Scheduled(scheduled_time=due), flow_run_id=flow_run.id)
            return True
        proposer = StateProposer(client=client)
        hooks = HookRunner(resolve_flow=_load)
        if flow_run.state.is_cancelling():
            await hooks.run_cancellation_hooks(flow_run, flow_run.state)
            return await proposer.propose_cancelled(flow_run, {"message": "Cancelled."})
        message = f"Process exited with status code: {code}. "
        message += why or get_infrastructure_exit_info(code).explanation
        state = await proposer.propose_crashed(flow_run, message=message)
        if state is not None:
            await hooks.run_crashed_hooks(flow_run, state)
        return state is not None and state.is_final()


def is_settled(flow_run: FlowRun, state: State[Any]) -> bool:
    """Has the run ended, or will another container take it?

    A retry within the same process isn't for others to take, so with that process it is lost.
    """
    again = state.is_scheduled() and flow_run.empirical_policy.retry_type != "in_process"
    return state.is_final() or again


def waits_for(state: State[Any]) -> datetime | None:
    """The time that a run still waits for: nothing has begun then, so nothing has crashed."""
    due = state.state_details.scheduled_time
    return due if state.is_pending() and due is not None and due > datetime.now(UTC) else None


async def _load(_: FlowRun) -> Flow[..., object]:
    entrypoint = await asyncio.to_thread(prepare)
    return await asyncio.to_thread(load_flow_from_entrypoint, entrypoint)
