"""Runs the flow run named in PREFECT__FLOW_RUN_ID, in one process, with its parent watching.

The stock command starts one Python to watch, one to prepare and one to run. Here one does both, on
Prefect's own parts. Its parent imports nothing but this: it passes signals on, and loads Prefect
only where the run's process died without a word, to say so and to run the hooks.

Exit code: 0 where the run's state tells how it ended, else that of the run's process.
"""

import gc
import os
import signal
import sys
import time
import traceback
from types import FrameType
from typing import NoReturn

# To cancel, to suspend, and to stop, which is to crash. The flow image's labels tell the worker.
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
# What a cancelled flow has for its `finally` and its hooks; as much as stock Prefect gives.
CANCEL_SECONDS = 30
# A server that is away, for an upgrade perhaps, is asked so often whether it has come back.
REPORTS, REPORT_SECONDS = 10, 6
# What that may take with the hooks, which may hang.
REPORT_MINUTES = 10


def main(seconds: float | None = None) -> int:
    """Forks, watches and reports; returns the exit code.

    Args:
        seconds: How long the run's process may take; then it is killed.
    """
    why = ""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    child = os.fork()
    if child == 0:
        run_flow()

    def pass_on(number: int, _frame: FrameType | None) -> None:
        os.kill(child, number)
        if number == signal.SIGUSR1:
            signal.alarm(CANCEL_SECONDS)

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal why
        why = f"It reached its time limit of {seconds:g} s." if seconds else ""
        os.kill(child, signal.SIGKILL)

    for number in SIGNALS:
        signal.signal(number, pass_on)
    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds or 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    _, status = os.waitpid(child, 0)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(REPORT_MINUTES * 60)
    code = os.waitstatus_to_exitcode(status)
    if code == 0 or reported(code, why):
        return 0
    return code if code > 0 else 128 - code


def run_flow() -> NoReturn:
    """Loads Prefect, as cheaply as it lets itself be loaded, and runs the flow run."""
    gc.disable()  # a twentieth of the loading, and nothing to be found
    # httpx brings its command line if it can be imported, and that the half of a terminal toolkit.
    sys.modules["httpx._main"] = None  # type: ignore[assignment]
    from .engine import run

    del sys.modules["httpx._main"]
    gc.freeze()
    gc.enable()
    run()


def reported(code: int, why: str) -> bool:
    """Says how the run's process ended, as soon as the server is there to hear it."""
    from .report import report

    for attempt in range(REPORTS):
        try:
            return report(code, why)
        except Exception:
            traceback.print_exc()
            time.sleep(REPORT_SECONDS if attempt < REPORTS - 1 else 0)
    return False


if __name__ == "__main__":
    sys.exit(main())
