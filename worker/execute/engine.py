"""Runs a flow run with Prefect's engine, at its time."""

import atexit
import contextlib
import gc
import io
import logging
import multiprocessing.util
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn
from uuid import UUID

import prefect.flow_engine
from prefect._internal import control_listener
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Abort, TerminationSignal
from prefect.flows import Flow
from prefect.futures import PrefectFuture
from prefect.states import Completed, Scheduled
from prefect.utilities.engine import propose_state_sync

from .workspace import prepare

FILES = {io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom}


def run() -> NoReturn:
    """Prepares and runs the flow run, and ends this process as Prefect's engine would."""
    exit_code = 1
    # To take a loaded Prefect apart costs as much as a sixth of loading it, for memory that goes
    # anyway. What is registered first is called last: threads have ended, logs are sent.
    atexit.register(lambda: _leave(exit_code))
    signal.signal(signal.SIGUSR1, _cancel)
    signal.signal(signal.SIGTERM, _stop)
    run_flow = prefect.flow_engine.run_flow

    def run_flow_on_time(
        flow: Flow[..., Any], flow_run: FlowRun | None = None, **options: Any
    ) -> Any:
        if flow_run is None:  # a module that calls a flow while it is imported
            return run_flow(flow, **options)
        prefect.flow_engine.run_flow = run_flow  # for subflows, which have no time of their own
        return run_flow(flow, flow_run=flow_run, wait_for=[ScheduledTime(flow_run)], **options)

    prefect.flow_engine.run_flow = run_flow_on_time  # type: ignore[assignment]
    sys.argv = ["prefect.engine"]
    # The module that `python -m prefect.engine` runs is, as a module, loaded already.
    del sys.modules["prefect.engine"]
    try:
        os.environ["PREFECT__FLOW_ENTRYPOINT"] = prepare()
        runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
        exit_code = 0
    except SystemExit as end:
        exit_code = end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.exit(exit_code)


def _leave(exit_code: int) -> None:
    """Does of what Python does at its end what somebody may rely on; the kernel does the rest."""
    multiprocessing.util._exit_function()  # type: ignore[attr-defined]
    logging.shutdown()
    for item in gc.get_objects():
        if type(item) in FILES:  # and perhaps still open
            with contextlib.suppress(ValueError, OSError):
                item.flush()
    os._exit(exit_code)


def _stop(*_: object) -> None:
    """Ends the process before and after the flow; while it runs, the engine has its own handler.

    The engine calls this one afterwards. Python's default would end the process there and then,
    with the last log lines unsent.
    """
    if not control_listener.engine_outcome_is_handled():
        sys.exit(128 + signal.SIGTERM)


def _cancel(*_: object) -> None:
    """Ends the run as Cancelled, its hooks called, where a SIGTERM alone is a crash."""
    if control_listener.get_intent() is None:
        control_listener._set_intent("cancel")
        os.kill(os.getpid(), signal.SIGTERM)


class ScheduledTime(PrefectFuture[None]):
    """A flow run's time, which its flow waits for like for any other future.

    A container may be there before its run's time. Everything is loaded then; the run is set
    Running, and the flow's first line run, at that time or right after it, never before. (Left to
    the server, a wait is rounded to whole seconds: half a second early is yesterday at midnight.)
    """

    def __init__(self, flow_run: FlowRun) -> None:
        """Takes the time from the state that the worker found the run in."""
        self._flow_run = flow_run
        self._time = flow_run.state.state_details.scheduled_time if flow_run.state else None

    @property
    def task_run_id(self) -> UUID:
        """No task's, but every future has one."""
        return self._flow_run.id

    @property
    def state(self) -> State[Any]:
        """Completed, as futures are that were waited for."""
        return Completed(data=True)

    def wait(self, timeout: float | None = None) -> None:
        """Returns at the run's scheduled time, or at once where that has passed.

        Raises:
            Abort: The container was stopped before; the run is handed back for another one.
        """
        if self._time is None:
            return
        try:
            # Not in one go: the clock may be set meanwhile.
            while (seconds := self._time.timestamp() - time.time()) > 0:
                time.sleep(min(seconds, 1))
        except TerminationSignal:
            if control_listener.get_intent() is not None:
                raise
            again: State[Any] = Scheduled(scheduled_time=self._time)
            with get_client(sync_client=True) as client:
                propose_state_sync(client, again, flow_run_id=self._flow_run.id)
            raise Abort("Stopped before its time, and handed back") from None

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> None:
        """Nothing but the wait."""
        self.wait(timeout)

    def add_done_callback(self, fn: Callable[[PrefectFuture[None]], None]) -> None:
        """Nobody asks."""
        raise NotImplementedError
