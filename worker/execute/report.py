"""Says how a flow run ended whose process died, and runs the hooks that it could not run itself."""

import asyncio

from prefect._internal.infrastructure_exit_codes import get_infrastructure_exit_info
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.runner._hook_runner import HookRunner
from prefect.runner._state_proposer import StateProposer

from .workspace import flow_run_id, prepare


def report(code: int) -> bool:
    """Reports a flow run as Crashed, or as Cancelled where that was asked for.

    Args:
        code: The exit code of its process, -N for signal N.

    Returns:
        Has the run a final state now, or is it to go on elsewhere?
    """
    return asyncio.run(_report(code))


async def _report(code: int) -> bool:
    async with get_client() as client:
        flow_run = await client.read_flow_run(flow_run_id())
        if flow_run.state is None or flow_run.state.is_final() or flow_run.state.is_scheduled():
            return True
        proposer = StateProposer(client=client)
        hooks = HookRunner(resolve_flow=_load)
        if flow_run.state.is_cancelling():
            await hooks.run_cancellation_hooks(flow_run, flow_run.state)
            return await proposer.propose_cancelled(flow_run, {"message": "Cancelled."})
        message = f"Process exited with status code: {code}. "
        message += get_infrastructure_exit_info(code).explanation
        state = await proposer.propose_crashed(flow_run, message=message)
        if state is not None:
            await hooks.run_crashed_hooks(flow_run, state)
        return state is not None and state.is_final()


async def _load(_: FlowRun) -> Flow[..., object]:
    entrypoint = await asyncio.to_thread(prepare)
    return await asyncio.to_thread(load_flow_from_entrypoint, entrypoint)
