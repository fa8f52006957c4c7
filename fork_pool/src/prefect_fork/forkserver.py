"""`multiprocessing`'s forkserver for flow runs: preloaded, looked at, and renewed.

A forkserver is a process that has loaded what every run needs, and does nothing but fork. Here it
is made anew when code has changed, and after a number of runs; runs of the old one go on.
"""

import ast
import asyncio
import contextlib
import json
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing import forkserver, reduction, resource_tracker
from pathlib import Path
from typing import Any

from .child import Job, Look
from .nursery import NursedForkServer, is_alive
from .preload import MODULES, changed

# Where a nursery was begun, its end of the pipe.
nursery: socket.socket | None = None

# So that whatever might grow in a process that only forks stays bounded.
RENEW_RUNS = 500
LOST = 255  # the exit code, to multiprocessing, of a process whose forkserver has gone


class PreloadError(Exception):
    """What was to be preloaded can't be: expected, found, and what to do."""


class Child:
    """A process that was forked."""

    def __init__(self, status: int) -> None:
        """Takes the pipe that its forkserver tells its id by, and later how it ended."""
        self._status = status
        self.pid = forkserver.read_signed(status)

    async def wait(self) -> int:
        """Waits for its end; returns the exit code, -N for signal N."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._status, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._status)
        code = self.exit_code()
        if code == LOST:
            await self._gone()
        return code

    async def _gone(self) -> None:
        """Waits for a process whose forkserver has gone; it says by itself how its run ended."""
        with contextlib.suppress(ProcessLookupError):
            process, ended = os.pidfd_open(self.pid), asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_reader(process, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(process)
                os.close(process)

    def exit_code(self) -> int:
        """Waits for its end, and lets nobody else do anything meanwhile."""
        try:
            return int(forkserver.read_signed(self._status))
        except EOFError:
            return LOST
        finally:
            os.close(self._status)


class ForkServers:
    """One forkserver after the other."""

    def __init__(self, preload: str, environment: dict[str, str]) -> None:
        """Starts none yet.

        Args:
            preload: Modules, and folders of flows whose imports are meant, separated by commas.
            environment: What the runs' processes have in theirs, for what is read at import.
        """
        self._preload = preload
        self._environment = environment
        self._excluded: set[str] = set()
        self._first_packages = self._packages()
        # Every process that is forked gets its pipe. Nobody shares memory that would need tracking,
        # and a Python of its own for it takes 6 MB.
        tracker: Any = resource_tracker._resource_tracker
        if tracker._fd is None:
            tracker._fd = os.open(os.devnull, os.O_WRONLY)
        self._server: Any = None
        self._seen: object = None
        self._forked = 0
        self._old: list[int] = []
        self._lock = threading.RLock()

    def start(self) -> None:
        """Starts a forkserver if there is none that is up to date.

        Raises:
            PreloadError: What is to be preloaded can't be.
        """
        with self._lock:
            if self._server is None or self._forked >= RENEW_RUNS or self._seen != self._look():
                self._renew()

    def fork(self, job: Job | Look) -> Child:
        """Forks a process for a job off a forkserver that is up to date.

        Raises:
            PreloadError: What is to be preloaded can't be.
        """
        with self._lock:
            self.start()
            self._forked += 1
            try:
                return self._ask(job)
            except (EOFError, OSError):  # it has died
                self._renew()
                return self._ask(job)

    def close(self) -> None:
        """Lets the forkserver end, when its last child has."""
        with self._lock:
            self._retire()
            self._reap()

    def _ask(self, job: Job | Look) -> Child:
        status, data = self._server.connect_to_new_process([])
        try:
            with open(data, "wb") as pipe:
                # Where the worker was started from; not its main module, which no run needs.
                reduction.dump({"name": "flow run", "sys_path": sys.path}, pipe)
                reduction.dump(job, pipe)
            return Child(status)
        except BaseException:
            os.close(status)
            raise

    def _renew(self) -> None:
        """Starts forkservers until one has loaded what can be loaded, and forks safely."""
        while True:
            self._retire()
            self._reap()
            self._seen, self._forked = self._look(), 0
            names = [name for name in modules(self._preload) if name not in self._excluded]
            self._server = self._begin(names)
            problems = self._problems()
            for name, found in problems.items():
                if name in entries(self._preload) or name not in names:
                    self._retire()
                    raise PreloadError(
                        f"expected: to preload {name}\nfound:    {found}\n"
                        "next:     mend PREFECT_FORK_PRELOAD, or install what it names"
                    )
            if not problems:
                return
            self._excluded |= problems.keys()

    def _begin(self, names: list[str]) -> Any:
        """A forkserver that loads these modules; of the nursery's, if Prefect is still the same."""
        if nursery is not None and self._packages() == self._first_packages:
            environment = {**os.environ, **self._environment}
            server: Any = NursedForkServer(nursery, names=names, environment=environment)
            with contextlib.suppress(OSError, ValueError):  # it has gone, or can't just now
                server.ensure_running()
                return server
        server = forkserver.ForkServer()
        server.set_forkserver_preload(["prefect_fork.preload"])
        with changed({**self._environment, MODULES: json.dumps(names)}):
            server.ensure_running()
        return server

    def _problems(self) -> dict[str, str]:
        """What went wrong while it loaded, by module."""
        with tempfile.NamedTemporaryFile("r") as file:
            try:
                code = self._ask(Look(file.name)).exit_code()
            except (EOFError, OSError):
                code = LOST
            text = file.read()
        if code or not text:
            return {"prefect": f"a forkserver whose child ended with exit code {code}"}
        found: dict[str, str] = json.loads(text)
        return found

    def _retire(self) -> None:
        """Lets the forkserver go; it ends with its last child."""
        server, self._server = self._server, None
        if server is not None and server._forkserver_alive_fd is not None:
            os.close(server._forkserver_alive_fd)
            self._old.append(server._forkserver_pid)

    def _reap(self) -> None:
        """Takes note of forkservers that have ended."""
        for pid in self._old:
            with contextlib.suppress(ChildProcessError):  # a nursery's
                os.waitpid(pid, os.WNOHANG)
        self._old = [pid for pid in self._old if is_alive(pid)]

    def _look(self) -> object:
        """What changes with the flows and the packages: names and times of files."""
        folders = [Path(entry) for entry in entries(self._preload) if os.sep in entry]
        files = [file for folder in folders for file in sorted(folder.glob("*.py"))]
        return [self._packages(), [(file, file.stat().st_mtime_ns) for file in files]]

    @staticmethod
    def _packages() -> object:
        """What changes with the packages alone."""
        folders = [Path(entry) for entry in sys.path if Path(entry).is_dir()]
        return [(folder, folder.stat().st_mtime_ns) for folder in folders]


def entries(preload: str) -> list[str]:
    """What PREFECT_FORK_PRELOAD names: modules, folders of flows, and, after a -, what not to."""
    return preload.replace(",", " ").split()


def modules(preload: str) -> list[str]:
    """The modules to load.

    Raises:
        PreloadError: A folder isn't there.
    """
    names: dict[str, None] = {}
    excluded = {entry[1:] for entry in entries(preload) if entry.startswith("-")}
    for entry in entries(preload):
        if entry.startswith("-"):
            continue
        if os.sep in entry and not Path(entry).is_dir():
            raise PreloadError(
                f"expected: a folder of flows to preload for\nfound:    none at {entry}\n"
                "next:     mend PREFECT_FORK_PRELOAD"
            )
        names.update(dict.fromkeys(imports(Path(entry)) if os.sep in entry else [entry]))
    return [name for name in names if name.split(".")[0] not in excluded]


def imports(folder: Path) -> Iterator[str]:
    """The modules that the flows in a folder import from elsewhere."""
    own = {path.stem for path in folder.glob("*.py")}
    for path in sorted(folder.glob("*.py")):
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # its run will say so
        for node in tree.body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            yield from (name for name in names if name.split(".")[0] not in own)
