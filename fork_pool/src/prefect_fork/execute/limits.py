"""Has a flow's time limit, `timeout_seconds`, end with the flow.

Prefect counts the time that the server needs to hear of it, too: a flow that has done all its work
is called timed out, and tried again, because the server was away.
"""

import functools
import signal
from typing import Any

import anyio
from prefect.client.schemas.objects import State
from prefect.flow_engine import AsyncFlowRunEngine, FlowRunEngine

from .workspace import flow_run_id


def end_limits_with_flows() -> None:
    """Changes Prefect's engines."""
    FlowRunEngine.set_state = _set_state(FlowRunEngine.set_state)  # type: ignore
    AsyncFlowRunEngine.set_state = _async_set_state(AsyncFlowRunEngine.set_state)  # type: ignore
    AsyncFlowRunEngine.handle_timeout = _handle_timeout(  # type: ignore
        AsyncFlowRunEngine.handle_timeout
    )


def _set_state(stock: Any) -> Any:
    @functools.wraps(stock)
    def set_state(engine: FlowRunEngine[Any, Any], state: State, force: bool = False) -> Any:
        # Only of this process's run: there is one timer, and a subflow's parent may need it.
        if state.is_completed() and engine.flow_run and engine.flow_run.id == flow_run_id():
            signal.setitimer(signal.ITIMER_REAL, 0)
        return stock(engine, state, force)

    return set_state


def _async_set_state(stock: Any) -> Any:
    @functools.wraps(stock)
    async def set_state(
        engine: AsyncFlowRunEngine[Any, Any], state: State, force: bool = False
    ) -> Any:
        with anyio.CancelScope(shield=state.is_completed()):
            return await stock(engine, state, force)

    return set_state


def _handle_timeout(stock: Any) -> Any:
    @functools.wraps(stock)
    async def handle_timeout(engine: AsyncFlowRunEngine[Any, Any], exc: TimeoutError) -> None:
        if not engine.state.is_completed():
            await stock(engine, exc)

    return handle_timeout
