"""The forkserver of the fork worker, without a Prefect server."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect_fork.child import Look
from prefect_fork.forkserver import ForkServers, PreloadError, imports, modules
from prefect_fork.worker import ForkWorker

FLOW = "import json, neighbour\nfrom xml import dom\nfrom . import sibling\nimport {}\n"
THREADED = (
    "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
)


@pytest.fixture
def flows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of flows, and beside it one of packages that can be imported."""
    folder, packages = tmp_path / "flows", tmp_path / "packages"
    folder.mkdir()
    packages.mkdir()
    (folder / "neighbour.py").write_text("")
    (folder / "broken.py").write_text("import (\n")
    (folder / "flow.py").write_text(FLOW.format("fork_threaded"))
    (packages / "fork_threaded.py").write_text(THREADED)
    monkeypatch.syspath_prepend(packages)
    return folder


def servers(preload: str) -> Iterator[ForkServers]:
    found = ForkServers(preload, {})
    try:
        yield found
    finally:
        found.close()


def said(code: str, *args: str) -> str:
    """What a Python of its own prints, which has to end well."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def pid(found: ForkServers) -> int:
    return int(found._server._forkserver_pid)


def test_what_flows_import(flows: Path) -> None:
    assert set(imports(flows)) == {"json", "xml", "fork_threaded"}
    assert set(modules(f"{flows}/, html,-xml")) == {"json", "fork_threaded", "html"}


def test_forkservers_are_renewed_and_replaced(flows: Path, tmp_path: Path) -> None:
    """When flows change, and when one is killed; what starts threads is left out."""
    for found in servers(f"{flows}/"):
        found.start()
        assert found._excluded == {"fork_threaded"}
        first = pid(found)
        found.start()
        assert pid(found) == first
        (flows / "flow.py").write_text("import json\n")
        found.start()
        second = pid(found)
        assert second != first
        os.kill(second, signal.SIGKILL)
        told = tmp_path / "told"
        assert found.fork(Look(str(told))).exit_code() == 0
        assert json.loads(told.read_text()) == {}
        assert pid(found) != second


@pytest.mark.parametrize(
    ("preload", "expected"),
    [("fork_threaded", "starts threads"), ("json,fork_nowhere", "No module named 'fork_nowhere'")],
)
def test_a_preload_that_is_wrong(flows: Path, preload: str, expected: str) -> None:
    for found in servers(preload):
        with pytest.raises(PreloadError, match=expected):
            found.start()


@pytest.mark.parametrize(
    ("name", "loaded"), [("xml.dom", True), ("fork_threaded", False), ("fork_nowhere", False)]
)
def test_what_is_shared_starts_no_threads(flows: Path, name: str, loaded: bool) -> None:
    code = (
        "import os, sys; from prefect_fork.preload import *;"
        "before = dict(os.environ); load_shared(sys.argv[1:]); assert os.environ == before;"
        "assert threads() == 1; print(sys.argv[1] in sys.modules)"
    )
    assert said(code, name) == str(loaded)


def test_descendants_end_with_a_run() -> None:
    """Those that left its session, too."""
    code = (
        "import subprocess, sys; from prefect_fork.child import *; adopt_descendants();"
        "subprocess.run(['sh', '-c', 'setsid sleep 1000 & sleep 1000 & exit']); end_descendants();"
        "print(open('/proc/self/task/%d/children' % threading.get_native_id()).read())"
    )
    assert said(code) == ""


def test_the_base_job_template() -> None:
    template = ForkWorker.get_default_base_job_template()
    names = {"env", "working_dir", "memory_limit", "time_limit", "stream_output"}
    assert set(template["variables"]["properties"]) == names
    assert set(template["job_configuration"]) == names
