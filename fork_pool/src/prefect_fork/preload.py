"""Imported by the forkserver before it forks: what every flow run would load by itself."""

import contextlib
import gc
import importlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping

from .execute.__main__ import SIGNALS

# What the flows import, as a JSON list of modules' names.
MODULES = "PREFECT_FORK_MODULES"
# What Prefect loads when a flow runs, as found in sys.modules after one; other versions may differ.
LAZY = [
    "anyio._backends._asyncio",
    "prefect._internal.states",
    "prefect.concurrency._asyncio",
    "prefect.concurrency._sync",
    "prefect.concurrency.services",
    "prefect.task_engine",
    "prefect.utilities.visualization",
    "pydantic.v1",
    "rich._emoji_codes",
]
# What went wrong, by module.
problems: dict[str, str] = {}


def load(names: list[str]) -> None:
    """Imports modules, until one has spoilt this process for forking."""
    # Its threads are no use to short flows, and would be lost to a forked one.
    with changed({"OPENBLAS_NUM_THREADS": os.environ.get("OPENBLAS_NUM_THREADS", "1")}):
        for name in names:
            try:
                importlib.import_module(name)
            except BaseException as error:  # SystemExit, too: this process has to stay
                problems[name] = f"{type(error).__name__}: {error}"
            if threads() > 1:
                problems[name] = (
                    "it starts threads when it is imported, and they don't survive a fork"
                )
                return


def load_shared(names: list[str]) -> None:
    """Imports modules before anything is forked, if a trial has shown that they can be.

    Else it is left to the forkservers, which say why. (One that imports writes to what it shares,
    and so needs a copy of its own.)
    """
    child = os.fork()
    if child == 0:
        load(names)
        os._exit(1 if problems else 0)
    if os.waitpid(child, 0)[1] == 0:
        load(names)


def adopt_environment(environment: Mapping[str, str]) -> None:
    """Makes this the environment, and has Prefect read what has changed."""
    before = prefect_variables()
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    if prefect_variables() != before:
        from prefect.context import refresh_global_settings_context
        from prefect.logging.configuration import setup_logging

        refresh_global_settings_context()
        setup_logging(incremental=False)


@contextlib.contextmanager
def changed(variables: dict[str, str]) -> Iterator[None]:
    """Has these variables in this process's environment, for a process that inherits it."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]


def prefect_variables() -> dict[str, str]:
    """Prefect's settings in the environment."""
    names = (n for n in os.environ if n.startswith("PREFECT_") and not n.startswith("PREFECT__"))
    return {name: os.environ[name] for name in names}


def threads() -> int:
    """How many threads this process has, those unknown to Python included where it can tell."""
    try:
        return len(os.listdir("/proc/self/task"))
    except FileNotFoundError:
        return threading.active_count()


def load_prefect() -> None:
    """Loads what a flow run needs of Prefect, and makes what it would make first."""
    gc.disable()  # nothing to be found, and every collection writes to what is to be shared
    load(["prefect_fork.execute.engine", "prefect_fork.execute.report"])
    for name in LAZY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    from prefect.client.orchestration import get_client

    if "PREFECT_API_URL" in os.environ:  # else it would start a server
        get_client(sync_client=True)
    gc.enable()


def ready() -> None:
    """Makes this process fit for forking off flow runs."""
    gc.freeze()  # so that a child's first collection doesn't copy all of it
    # A run that is told something before it can hear it is told as soon as it can.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


if MODULES in os.environ:
    load_prefect()
    load(json.loads(os.environ.pop(MODULES)))
    gc.collect()
    ready()
