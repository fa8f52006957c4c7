"""What holds from the moment when a flow has done its work: the server has yet to hear of it.

Prefect counts that against the flow's time limit, `timeout_seconds`, and would try a flow again
that has done all its work, because the server was away. And it is noted: see `done`.
"""

import functools
import signal
from typing import Any

import anyio
from prefect.client.schemas.objects import State
from prefect.flow_engine import AsyncFlowRunEngine, FlowRunEngine

from .done import forget, noted
from .workspace import flow_run_id


def keep_what_is_done() -> None:
    """Changes Prefect's engines."""
    FlowRunEngine.set_state = _set_state(FlowRunEngine.set_state)  # type: ignore
    AsyncFlowRunEngine.set_state = _async_set_state(AsyncFlowRunEngine.set_state)  # type: ignore
    FlowRunEngine.call_hooks = _call_hooks(FlowRunEngine.call_hooks)  # type: ignore
    AsyncFlowRunEngine.call_hooks = _call_hooks(AsyncFlowRunEngine.call_hooks)  # type: ignore
    AsyncFlowRunEngine.handle_timeout = _handle_timeout(  # type: ignore
        AsyncFlowRunEngine.handle_timeout
    )


def is_done(engine: FlowRunEngine[Any, Any] | AsyncFlowRunEngine[Any, Any], state: State) -> bool:
    """Is it this process's run that has completed, and not a subflow of it?

    There is one timer, which a subflow's parent may need; and a subflow goes with its parent.
    """
    own = engine.flow_run is not None and engine.flow_run.id == flow_run_id()
    return own and state.is_completed()


def _set_state(stock: Any) -> Any:
    @functools.wraps(stock)
    def set_state(engine: FlowRunEngine[Any, Any], state: State, force: bool = False) -> Any:
        if not is_done(engine, state):
            return stock(engine, state, force)
        signal.setitimer(signal.ITIMER_REAL, 0)
        with noted(flow_run_id(), state):
            return stock(engine, state, force)

    return set_state


def _async_set_state(stock: Any) -> Any:
    @functools.wraps(stock)
    async def set_state(
        engine: AsyncFlowRunEngine[Any, Any], state: State, force: bool = False
    ) -> Any:
        with anyio.CancelScope(shield=state.is_completed()):
            if not is_done(engine, state):
                return await stock(engine, state, force)
            with noted(flow_run_id(), state):
                return await stock(engine, state, force)

    return set_state


def _call_hooks(stock: Any) -> Any:
    """The server knows when hooks are called; they may take long, and be killed."""

    @functools.wraps(stock)
    def call_hooks(engine: FlowRunEngine[Any, Any], state: State | None = None) -> Any:
        if is_done(engine, state or engine.state):
            forget(flow_run_id())
        return stock(engine, state)

    return call_hooks


def _handle_timeout(stock: Any) -> Any:
    @functools.wraps(stock)
    async def handle_timeout(engine: AsyncFlowRunEngine[Any, Any], exc: TimeoutError) -> None:
        if not engine.state.is_completed():
            await stock(engine, exc)

    return handle_timeout
