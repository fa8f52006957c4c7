"""The ``prefect`` command in less memory: ``python -m prefect_fork worker start --type fork``."""

import contextlib
import importlib
import os
import sys

from . import forkserver, nursery, preload

if __name__ == "__main__":
    preload.load_prefect()
    for name in ("prefect.cli.worker", "prefect_fork.worker"):
        importlib.import_module(name)
    # Shared as well, and by the worker, which has no use for it, at no price.
    with contextlib.suppress(forkserver.PreloadError):  # the worker says so
        preload.load_shared(forkserver.modules(os.environ.get("PREFECT_FORK_PRELOAD", "")))
    forkserver.nursery = nursery.begin()
    sys.argv[0] = "prefect"
    from prefect.cli import app

    app()
