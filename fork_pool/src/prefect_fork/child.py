"""What a forked process does: for a flow run, to become what a container would be for it."""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import tempfile
import threading
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

from .preload import adopt_environment, problems, threads

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
STATM_DATA = 5  # proc(5): data + stack, in pages


@dataclass(frozen=True)
class Look:
    """Tells how the forkserver loaded; unpickled and called in a process forked off it."""

    path: str

    def _bootstrap(self, _parent_sentinel: int) -> int:
        found = dict(problems)
        if not found and threads() > 1:  # of this child, which began with one
            found["prefect"] = f"{threads()} threads after a fork"
        with open(self.path, "w") as file:
            json.dump(found, file)
        return 0


@dataclass(frozen=True)
class Job:
    """A flow run's process.

    Attributes:
        environment: All of it.
        folder: Where it starts.
        temporary: Its own folder for temporary files.
        output: Does what it prints go where the worker's own output goes?
        memory: What it may allocate beyond what is loaded, in bytes.
        seconds: How long it may take.
    """

    environment: dict[str, str]
    folder: str
    temporary: str
    output: bool
    memory: int | None
    seconds: float | None

    def _bootstrap(self, _parent_sentinel: int) -> int:
        """Called by multiprocessing in the new process, where a Process would be; the exit code."""
        os.setsid()
        adopt_descendants()
        self._become()
        from .execute.__main__ import main
        from .execute.engine import leave

        code = main(self.seconds)
        end_descendants()
        leave(code)

    def _become(self) -> None:
        adopt_environment({**self.environment, "TMPDIR": self.temporary})
        tempfile.tempdir = None
        os.chdir(self.folder)
        if not self.output:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            os.close(null)
        with contextlib.suppress(OSError):  # where memory runs out, it is this one's
            Path("/proc/self/oom_score_adj").write_text("500")
        if self.memory is not None:
            limit = data_bytes() + self.memory
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        forget_forkserver()
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed()  # Python's own generator does that by itself


def data_bytes() -> int:
    """The memory that counts against RLIMIT_DATA."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[STATM_DATA]) * resource.getpagesize()


def forget_forkserver() -> None:
    """A flow that uses a forkserver itself gets its own, not the one that it was forked off."""
    server: Any = forkserver._forkserver
    server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None
    tracker: Any = resource_tracker._resource_tracker
    tracker._fd = tracker._pid = None


def adopt_descendants() -> None:
    """Has processes whose parent is gone become this one's children, as in a container's init."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_descendants() -> None:
    """Kills every process that the run left behind, those that left its group too."""
    children = f"/proc/self/task/{threading.get_native_id()}/children"
    while os.path.exists(children):
        with open(children) as file:
            found = file.read().split()
        if not found:
            return
        for pid in map(int, found):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
