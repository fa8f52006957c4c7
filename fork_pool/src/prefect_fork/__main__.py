"""The ``prefect`` command in less memory: ``python -m prefect_fork worker start --type fork``."""

import importlib
import sys

from . import forkserver, nursery, preload

if __name__ == "__main__":
    preload.load_prefect()
    for name in ("prefect.cli.worker", "prefect_fork.worker"):
        importlib.import_module(name)
    forkserver.nursery = nursery.begin()
    sys.argv[0] = "prefect"
    from prefect.cli import app

    app()
