"""One run of the daily flow in this process, with a server and an API that live as long as it."""

import atexit
import os
import runpy
import shutil
import socket
import sys
import tempfile
import threading
from pathlib import Path

import uvicorn

PROJECT = Path(__file__).parents[1]
ARTIFACT = "activity"


def main() -> None:
    """Runs it and shows its artifact."""
    home = tempfile.mkdtemp(prefix="prefect-try-")
    # Registered before Prefect's own, so that the server has stopped by then.
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.chdir(home)  # out of reach of this folder's .env, which leads to a running stack
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        os.environ |= {
            "PREFECT_HOME": home,
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "ACTIVITY_API_URL": "http://{}:{}/api/activity".format(*listener.getsockname()),
        }
        serve_upstream(listener)
        run()


def serve_upstream(listener: socket.socket) -> None:
    """Serves the upstream on a socket that listens already, until the process ends."""
    sys.path.insert(0, str(PROJECT))
    server = uvicorn.Server(uvicorn.Config("upstream.app:app", log_level="warning"))
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()


def run() -> None:
    """Runs the flow, as `python flows/suggest_activity.py` would."""
    print("\n==> One run of flows/suggest_activity.py, on a server of its own", flush=True)
    flow = PROJECT / "flows/suggest_activity.py"
    sys.path.insert(0, str(flow.parent))
    runpy.run_path(str(flow), run_name="__main__")

    from prefect.artifacts import Artifact

    artifact = Artifact.get(ARTIFACT)
    if artifact is None:
        sys.exit(f"expected an artifact {ARTIFACT}, found none")
    print(f"\n==> Its artifact, {ARTIFACT}\n")
    for line in str(artifact.data).splitlines():
        print(f"    {line}".rstrip())
    print("\nThat was a look. The stack, with a schedule, history and containers: make up")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
