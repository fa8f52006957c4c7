"""Imported by the forkserver before it forks: what every flow run would load by itself."""

import contextlib
import gc
import importlib
import json
import os
import threading

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
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            problems[name] = f"{type(error).__name__}: {error}"
        except BaseException as error:  # SystemExit, too: this process has to stay
            problems[name] = f"{type(error).__name__}: {error}"
        if threads() > 1:
            problems[name] = "it starts threads when it is imported, and they don't survive a fork"
            return


def threads() -> int:
    """How many threads this process has, those unknown to Python included where it can tell."""
    try:
        return len(os.listdir("/proc/self/task"))
    except FileNotFoundError:
        return threading.active_count()


def load_prefect() -> None:
    """Loads what a flow run needs of Prefect, and makes what it would make first."""
    load(["prefect_fork.execute.engine", "prefect_fork.execute.report"])
    for name in LAZY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    from prefect.client.orchestration import get_client

    get_client(sync_client=True)


if MODULES in os.environ:
    load_prefect()
    load(json.loads(os.environ.pop(MODULES)))
    gc.collect()
    gc.freeze()  # so that a child's first collection doesn't copy all of it
