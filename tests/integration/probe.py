"""A flow for tests, in the place of a user's: it ends in every way there is, and says so."""

import contextlib
import ctypes
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import numpy as np
from prefect import flow, suspend_flow_run, task
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

SPOILT: list[str] = []


def told(*_: Any, **__: Any) -> None:
    """A hook; Prefect logs that it ran."""


@task
def step(_number: int) -> None:
    time.sleep(1)


@task(persist_result=True)
def answer() -> int:
    return 42


@flow(log_prints=True, on_cancellation=[told], on_crashed=[told], persist_result=True)
def probe(how: str = "completes") -> Any:
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
        case "exits":
            sys.exit(3)
        case "is broken":
            ctypes.string_at(0)
        case "eats":
            print(len(bytearray(1 << 30)))
        case "eats all":
            eaten = []
            while True:
                eaten.append(bytes(os.urandom(1 << 20)) * 64)
        case "suspends":
            suspend_flow_run(timeout=300, key="once")
            print("resumed")
        case "steps":
            for number in range(60):
                step(number)
        case "is deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            subprocess.Popen(["sleep", "1000"])
            time.sleep(120)
        case "multiplies":
            subprocess.Popen(["sleep", "1000"])
            subprocess.Popen(["sleep", "1000"], start_new_session=True)
            if os.fork() == 0:
                os.setsid()
                time.sleep(1000)
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        case "floods":
            for _ in range(100):
                os.write(1, b"x" * (1 << 20))
        case "is disguised":
            ctypes.CDLL(None).prctl(15, b"nobody", 0, 0, 0)
        case "spoils":
            spoil()
        case "answers":
            create_markdown_artifact("# 42", key="answer")
            return answer()
    return None


def open_files() -> list[str]:
    """The paths of this process's open files; connections come and go."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return sorted(path for path in found if path.startswith("/") and "/proc/" not in path)


def spoil() -> None:
    """Says what it found, then leaves everything in another state."""
    found = {
        "spoilt": SPOILT,
        "environment": sorted(os.environ),
        "folder": os.listdir(),
        "temporary": len(os.listdir(tempfile.gettempdir())),
        "files": open_files(),
        "handler": str(signal.getsignal(signal.SIGINT)),
        "path": sys.path,
        "limit": resource.getrlimit(resource.RLIMIT_CORE),
        "mask": os.umask(0o77),
    }
    print(f"found {json.dumps(found)}")
    print(f"chance {random.random()} {np.random.random()} {os.getpid()}")
    SPOILT.append("spoilt")
    os.environ["SPOILT"] = "1"
    os.chdir("/data")
    tempfile.mkstemp()
    sys.path.append("/spoilt")
    random.seed(1)
    np.random.seed(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    open(os.devnull)  # noqa: SIM115
