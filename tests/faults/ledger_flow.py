"""The flow whose runs are counted: it writes into the ledger when it starts and when it has ended.

At a slot's first attempt it misbehaves if it is asked to; what comes of it, its retries decide.
"""

import os
import time
import uuid
from typing import Any

import requests
from prefect import flow
from prefect.runtime import flow_run

REFUSED_SECONDS = 10


def tell(url: str, **entry: Any) -> int:
    """Writes an entry, for some time against a ledger that refuses; how many were there before."""
    deadline = time.monotonic() + REFUSED_SECONDS
    while True:
        try:
            answer = requests.post(url, json=entry, timeout=3)
            answer.raise_for_status()
            return int(answer.text)
        except requests.RequestException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


if url := os.environ.get("LEDGER_EXIT"):
    run = os.environ["PREFECT__FLOW_RUN_ID"]
    own = {"run": run, "execution": str(uuid.uuid4()), "at": time.time()}
    # In the place of a slot, which it can't know yet.
    if tell(url, event="load", deployment=run, due=0, **own) == 0:
        os._exit(7)


@flow(retries=8, retry_delay_seconds=3)
def ledger(url: str, deployment: str, work: float = 1, how: str = "") -> None:
    at = time.time()
    entry = {
        "deployment": deployment,
        "due": flow_run.scheduled_start_time.timestamp(),
        "run": flow_run.id,
        "execution": str(uuid.uuid4()),
    }
    earlier = tell(url, event="start", at=at, **entry)
    if how and earlier == 0:
        misbehave(how)
    time.sleep(work)
    tell(url, event="end", at=time.time(), **entry)


limited = ledger.with_options(timeout_seconds=10)


def misbehave(how: str) -> None:
    """Hangs, or eats all memory that it is given."""
    eaten = []
    while how == "eats":
        eaten.append(os.urandom(1 << 20) * 32)
    time.sleep(3600)
