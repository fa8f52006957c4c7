"""A flow for tests, in the place of a user's: it ends in every way there is, and says so."""

import os
import signal
import time
from typing import Any

from prefect import flow, suspend_flow_run
from prefect.runtime import flow_run


def told(*_: Any, **__: Any) -> None:
    """A hook; Prefect logs that it ran."""


@flow(log_prints=True, on_cancellation=[told], on_crashed=[told])
def probe(how: str = "completes") -> None:
    started = time.time()
    print(f"first line at {started!r}, due {flow_run.scheduled_start_time.timestamp()!r}")
    print(f"in {os.getcwd()}")
    match how:
        case "sleeps":
            try:
                time.sleep(120)
            finally:
                print("put away")
        case "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "leaves":
            os._exit(3)
        case "eats":
            print(len(bytearray(1 << 30)))
        case "suspends":
            suspend_flow_run(timeout=300, key="once")
            print("resumed")
