"""Says how a flow run ended whose process died, and runs the hooks that it could not run itself."""

import asyncio
import signal

from prefect._internal.infrastructure_exit_codes import get_infrastructure_exit_info
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.runner._hook_runner import HookRunner
from prefect.runner._state_proposer import StateProposer
from prefect.utilities.engine import propose_state

from ..settle import (
    crash_subflows,
    hand_back,
    is_open,
    is_ours,
    leave_process,
    start_again,
)
from .done import forget, noted_state
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
        if flow_run.state is None or not is_open(flow_run):
            return True
        if flow_run.state.is_pending() and not is_ours(flow_run):
            return True  # another process has it
        if flow_run.state.is_pending() and code in STOPPED:
            await hand_back(client, flow_run)
            return True
        proposer = StateProposer(client=client)
        hooks = HookRunner(resolve_flow=_load)
        if flow_run.state.is_cancelling():
            await hooks.run_cancellation_hooks(flow_run, flow_run.state)
            return await proposer.propose_cancelled(flow_run, {"message": "Cancelled."})
        if state := noted_state(flow_run.id, await client.read_flow_run_states(flow_run.id)):
            await propose_state(client, state, flow_run_id=flow_run.id)
            forget(flow_run.id)
            return True
        message = f"Process exited with status code: {code}. "
        message += why or get_infrastructure_exit_info(code).explanation
        if flow_run.state.is_pending() and await start_again(client, flow_run, message):
            return True
        await leave_process(client, flow_run)
        state = await proposer.propose_crashed(flow_run, message=message)
        await crash_subflows(client, flow_run.id)
        if state is not None:
            await hooks.run_crashed_hooks(flow_run, state)
        return state is not None and state.is_final()


async def _load(_: FlowRun) -> Flow[..., object]:
    entrypoint = await asyncio.to_thread(prepare)
    return await asyncio.to_thread(load_flow_from_entrypoint, entrypoint)
