"""Runs a flow run with Prefect's engine, at its time."""

import atexit
import contextlib
import functools
import gc
import io
import os
import runpy
import signal
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NoReturn
from uuid import UUID

import prefect.client.orchestration
import prefect.flow_engine
from prefect._flow_run_suspension import (
    FlowRunSuspensionRequest,
    is_suspended_flow_run_state,
    mark_flow_run_suspension_requested,
)
from prefect._internal import control_listener
from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Abort, TerminationSignal
from prefect.flows import Flow
from prefect.futures import PrefectFuture
from prefect.settings import (
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_CLIENT_RETRY_EXTRA_CODES,
    temporary_settings,
)
from prefect.states import Completed, Scheduled
from prefect.utilities.engine import propose_state_sync

from ..settle import LOST_SECONDS, is_ours
from .__main__ import SIGNALS
from .completion import keep_what_is_done
from .done import forget, note, noted_state
from .workspace import prepare

# Each of Prefect's clients, four in a run, reads the CAs anew, for 15 ms of CPU. Only they share:
# what a flow makes of a context of its own is no business of theirs.
prefect.client.orchestration.ssl = SimpleNamespace(  # type: ignore[assignment, attr-defined]
    **{**vars(ssl), "create_default_context": functools.cache(ssl.create_default_context)}
)

# A run was handed out by a server that is there; where it is away for a moment, it will be back.
for kind in (PrefectHttpxAsyncClient, PrefectHttpxSyncClient):
    kind._has_connected = property(lambda _: True, lambda _, __: None)  # type: ignore

# So it asks for four minutes, where Prefect's default is one; 500 is a server without its database.
PATIENCE: dict[Any, Any] = {PREFECT_CLIENT_MAX_RETRIES: 7, PREFECT_CLIENT_RETRY_EXTRA_CODES: {500}}

FILES = {io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom}


def run() -> NoReturn:
    """Prepares and runs the flow run, and ends this process as Prefect's engine would."""
    signal.signal(signal.SIGUSR1, _cancel)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # until there is a flow to suspend
    run_flow = prefect.flow_engine.run_flow

    def run_flow_on_time(
        flow: Flow[..., Any], flow_run: FlowRun | None = None, **options: Any
    ) -> Any:
        if flow_run is None:  # a module that calls a flow while it is imported
            return run_flow(flow, **options)
        prefect.flow_engine.run_flow = run_flow  # for subflows, which have no time of their own
        return run_flow(flow, flow_run=flow_run, wait_for=[ScheduledTime(flow_run)], **options)

    prefect.flow_engine.run_flow = run_flow_on_time  # type: ignore[assignment]
    keep_what_is_done()
    prefect.flow_engine.observe_flow_run_suspension = suspended_by_signal  # type: ignore
    sys.argv = ["prefect.engine"]
    # The module that `python -m prefect.engine` runs is, as a module, loaded already.
    del sys.modules["prefect.engine"]
    exit_code = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        with temporary_settings(PATIENCE):
            os.environ["PREFECT__FLOW_ENTRYPOINT"] = prepare()
            runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
        exit_code = 0
    except SystemExit as end:
        exit_code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    leave(exit_code)


def leave(exit_code: int) -> NoReturn:
    """Does of what Python does at its end what somebody may rely on; the kernel does the rest.

    To take a loaded Prefect apart costs as much as a sixth of loading it, for memory that goes
    anyway.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()  # threads have ended, logs are sent
        for item in (sys.stdout, sys.stderr, *gc.get_objects()):
            if type(item) in FILES:  # and perhaps still open
                with contextlib.suppress(ValueError, OSError):
                    item.flush()
    finally:  # whatever signal comes now
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


@contextlib.contextmanager
def suspended_by_signal(
    flow_run_id: UUID, _request: FlowRunSuspensionRequest, _polling_interval: float = 10
) -> Iterator[None]:
    """Has SIGUSR2 suspend the run at its next task, where Prefect would follow the events for it.

    A connection, a thread and an event loop for each run are half of what a small one costs; the
    worker follows the events anyway.
    """

    def look() -> None:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(flow_run_id).state
        if state is not None and is_suspended_flow_run_state(state):
            mark_flow_run_suspension_requested(flow_run_id, state)

    signal.signal(signal.SIGUSR2, lambda *_: threading.Thread(target=look, daemon=True).start())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)


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
        self._known = time.monotonic()

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
            Abort: The container was stopped before; the run is handed back for another one. Or it
                was thought lost, and another one has the run already. Or there is nothing to do.
        """
        self._look()
        if note(self._flow_run.id).exists():
            self._tell_what_is_done()
        if self._time is None:
            return
        try:
            # Not in one go: the clock may be set meanwhile.
            while (seconds := self._time.timestamp() - time.time()) > 0:
                time.sleep(min(seconds, 1))
            self._look()
        except TerminationSignal:
            if control_listener.get_intent() is not None:
                raise
            self._look()
            again: State[Any] = Scheduled(scheduled_time=self._time)
            with get_client(sync_client=True) as client:
                propose_state_sync(client, again, flow_run_id=self._flow_run.id)
            raise Abort("Stopped before its time, and handed back") from None

    def _tell_what_is_done(self) -> None:
        with get_client(sync_client=True) as client:
            states = client.read_flow_run_states(self._flow_run.id)
            state = noted_state(self._flow_run.id, states)
            if state is not None:
                propose_state_sync(client, state, flow_run_id=self._flow_run.id)
        forget(self._flow_run.id)
        if state is not None:
            raise Abort("Its flow had done its work before, only word of it was lost")

    def _look(self) -> None:
        """Ends this process if the run is no longer its own, as it is not after a long freeze."""
        if time.monotonic() - self._known > LOST_SECONDS:
            with get_client(sync_client=True) as client:
                self._flow_run = client.read_flow_run(self._flow_run.id)
            self._known = time.monotonic()
        if not is_ours(self._flow_run):
            raise Abort("Thought lost, and started again elsewhere")

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> None:
        """Nothing but the wait."""
        self.wait(timeout)

    def add_done_callback(self, fn: Callable[[PrefectFuture[None]], None]) -> None:
        """Nobody asks."""
        raise NotImplementedError
